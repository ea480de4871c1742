"""`himtok eval`: score a result file in one or more processes and report it with its failures and its run card.

Contract: if the dataset is given as `rows`, every sample counts: samples without a result are missing answers and are
listed as failures. Inference is not repeated, so a new metric or protocol costs no GPU time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from himtok_plugin.data.samples import first_image_size, row_masks
from himtok_plugin.jobs.processes import Processes

from .ground_truth import ASKS_FOR_MASKS, select_answer_boxes, select_answer_masks
from .protocols import PLAIN, Protocol
from .provenance import RunCard
from .redecoding import Redecoder
from .report import ScoreReport
from .results import PREDICTED, PREDICTED_BOXES, TRUE, TRUE_BOXES, has_true_masks, read_results
from .scoring import ResultScores

COPIED = ("messages", "ignore", "category", "expressions")  # columns that a missing result takes from its sample


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
        protocol: the evaluation protocol.
        rows: the dataset of the run; its samples with a true mask or box and without a result are failures.
        redecoder: decodes the predicted masks again.
        processes: the processes that share the work; each returns the whole report.
    Raises:
        ValueError: a result cannot be scored, or none of them has a truth.
        OSError: a file cannot be read.
    """
    processes = processes or Processes()
    share = (processes.rank, processes.count)
    scores = ResultScores(protocol, boundary, min_score, root)
    seen: list[int] = []
    for number, row in read_results(path, on_progress, share):
        name = f"{path}: row {number}"
        try:
            if rows is not None and (has_true_masks(row) or row.get("row") is not None):
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
        card = redecoder.update_card(card or RunCard())
    return ScoreReport(str(path), numbers, protocol, card, failures, scores.classes.per_class())


def _row_number(row: dict[str, Any]) -> int:
    number = row.get("row")
    if not isinstance(number, int):
        raise ValueError(f"row: got {number!r}, expected its number in the dataset, as written by `swift infer`")
    return number


def _add_failures(scores: ResultScores, rows: str | Path, found: set[int]) -> list[str]:
    """Score the samples of a dataset whose row number is not in `found`; returns a line for each."""
    failures = []
    # Like ms-swift, do not count blank lines.
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
        copied = {key: row[key] for key in COPIED if row.get(key) is not None}
        scores.add({PREDICTED: [], PREDICTED_BOXES: [], **true, **copied}, f"{rows}: row {line}")
        failures.append(f"{rows}: row {line}: has no result")
    return failures
