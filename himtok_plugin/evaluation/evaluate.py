"""`himtok eval`: a result file scored under a protocol, by one process or many, with its failures and its run.

Contract: every row of the dataset is in the scores: those that have no result, told by `rows`, are missing answers and
are listed. Predictions are read, never made, so a new metric or protocol needs no new inference; `Redecoder` makes
masks anew from the codes that results hold, where another way from the square to the image is asked for. Does not know
how reports look.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from himtok_plugin.data.samples import first_image_size, row_masks
from himtok_plugin.jobs.processes import Processes
from himtok_plugin.masks.rle import check_size
from himtok_plugin.masks.sources import to_rle

from .ground_truth import ASKS_FOR_MASKS, select_answer_boxes, select_answer_masks
from .protocols import Protocol, Resize, resize_square
from .provenance import RunCard
from .report import ScoreReport
from .scoring import (
    PLAIN,
    PREDICTED,
    PREDICTED_BOXES,
    TRUE,
    TRUE_BOXES,
    ResultScores,
    asks_for_masks,
    read_results,
)

CARRIED = ("messages", "ignore", "category", "expressions")  # of a row that has no result


def evaluate_results(
    path: str | Path,
    protocol: Protocol = PLAIN,
    root: str | Path | None = None,
    boundary: bool = True,
    min_score: float = 0.0,
    rows: str | Path | None = None,
    redecoder: Redecoder | None = None,
    processes: Processes | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> ScoreReport:
    """Score a result file.

    Args:
        path, root, boundary, min_score, on_progress: see `scoring.score_results`.
        protocol: the rules.
        rows: the dataset that was predicted; those of its rows with masks that have no result are failures, unless
            they ask for neither masks nor a box.
        redecoder: makes the predicted masks anew.
        processes: that share the work; each of them returns the whole report.
    Raises:
        ValueError: a row that cannot be scored, or a file without rows.
        OSError: a file cannot be read.
    """
    processes = processes or Processes()
    share = (processes.rank, processes.count)
    scores, seen = ResultScores(protocol, boundary, min_score, root), []
    for number, row in read_results(path, on_progress, share):
        name = f"{path}: row {number}"
        try:
            if rows is not None and (asks_for_masks(row) or row.get("row") is not None):
                seen.append(_row_number(row))
            row = row if redecoder is None else redecoder(row)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        scores.add(row, name)
    found = [number for part in processes.gather(seen) for number in part]
    ((most, times),) = Counter(found).most_common(1) or ((None, 0),)
    if times > 1:
        raise ValueError(f"{path}: row number {most} occurs more than once: expected results of {rows} alone")
    failures: list[str] = []
    if rows is not None and processes.rank == 0:
        failures = _add_failures(scores, rows, set(found))
    parts = processes.gather((scores, failures))
    scores, failures = parts[0]
    for other, _ in parts[1:]:
        scores.merge(other)
    scores.check(path)
    numbers = {**scores.compute(), "failures": len(failures)}
    card = RunCard.load(path)
    if card is not None:
        card.min_score = max(min_score, card.min_score or 0.0)
    if redecoder is not None:
        card = redecoder.card(card or RunCard())
    return ScoreReport(str(path), numbers, protocol, card, failures, scores.classes.per_class())


def _row_number(row: dict[str, Any]) -> int:
    number = row.get("row")
    if not isinstance(number, int):
        raise ValueError(f"row: got {number!r}, expected its number in the dataset, as `swift infer` writes it")
    return number


def _add_failures(scores: ResultScores, rows: str | Path, found: set[int]) -> list[str]:
    """Score the rows of a dataset that are not among those found; returns a line for each."""
    failures = []
    # Blank lines are no rows to ms-swift, and do not count.
    for number, (line, row) in enumerate(read_results(rows), start=1):
        masks = row_masks(row, f"{rows}: row {line}")
        if number in found or masks is None:
            continue
        messages, objects = row.get("messages") or [], row.get("objects") or {}
        size = first_image_size(row) if objects.get("bbox_type") else None
        true = {
            TRUE: select_answer_masks(masks, messages, row.get(ASKS_FOR_MASKS)),
            TRUE_BOXES: select_answer_boxes(objects, messages, size),
        }
        true = {key: value for key, value in true.items() if value is not None}
        if not true:
            continue
        carried = {key: row[key] for key in CARRIED if row.get(key) is not None}
        failed = {PREDICTED: [], PREDICTED_BOXES: [], **true, **carried}
        scores.add(failed, f"{rows}: row {line}")
        failures.append(f"{rows}: row {line}: has no result")
    return failures


class Redecoder:
    """Predicted masks anew from their codes, with another resize or threshold.

    The probabilities that inference had are gone, so this is hard decoding; a refiner's work is undone.

    Args:
        mask_tokenizer: that wrote the codes.
        resize: see `protocols.RESIZES`.
        threshold: probability from which a pixel is foreground.
    """

    def __init__(self, mask_tokenizer: Any, resize: Resize = "bilinear", threshold: float = 0.5) -> None:
        self.mask_tokenizer = mask_tokenizer
        self.resize = resize
        self.threshold = threshold

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with other masks.

        Raises:
            ValueError: a mask without codes of this mask tokenizer.
        """
        import torch

        masks = row.get(PREDICTED)
        if not isinstance(masks, list) or not masks:
            return row
        config, made = self.mask_tokenizer.config, []
        for i, mask in enumerate(masks):
            codes = mask.get("codes") if isinstance(mask, dict) else None
            legal = isinstance(codes, list) and 1 <= len(codes) <= config.num_mask_tokens
            if not legal or not all(isinstance(c, int) and 0 <= c < config.codebook_size for c in codes):
                raise ValueError(
                    f"{PREDICTED}[{i}].codes: got {codes!r:.80}, expected 1 to {config.num_mask_tokens} integers below "
                    f"{config.codebook_size}"
                )
            size = check_size(mask.get("size"), f"{PREDICTED}[{i}].size")
            with torch.inference_mode():
                square = self.mask_tokenizer.decode(torch.tensor([codes], device=self.mask_tokenizer.device))[0]
            made.append({**mask, **to_rle(resize_square(square.cpu().numpy(), size, self.threshold, self.resize))})
        return {**row, PREDICTED: made}

    def card(self, card: RunCard) -> RunCard:
        """The run's card, saying what was done here."""
        return replace(
            card,
            mask_decoding="hard, anew from the codes",
            resize=self.resize,
            threshold=self.threshold,
            refiner="none",
            num_mask_tokens=card.num_mask_tokens or self.mask_tokenizer.config.num_mask_tokens,
        )
