"""`himtok eval`: score a result file in one or more processes and report it with its failures and its run card.

Contract: results with an `error` are listed as failures and are wrong in every metric. If the dataset is given as
`rows`, so are its samples without a result. A row with two results is refused unless one of them is chosen. Inference
is not repeated, so a new metric or protocol costs no GPU time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from himtok_plugin.data.samples import TEXT_COLUMNS, first_image_size, row_masks
from himtok_plugin.jobs.processes import Processes

from .baselines import Baselines, BaselineSettings, NamedResult
from .ground_truth import ASKS_FOR_MASKS, select_answer_boxes, select_answer_masks
from .protocols import PLAIN, Protocol
from .provenance import RunCard
from .redecoding import Redecoder
from .report import ScoreReport
from .result_keys import REFUSE, Key, check_rows_once, find_repeated_lines, get_result_key
from .results import ERROR, TRUE, TRUE_BOXES, has_true_masks, read_results
from .scoring import ResultScores

NO_RESULT = "has no result"
REDECODED = 64  # results whose masks are decoded again together
# Columns that a missing result takes from its sample.
COPIED = (*TEXT_COLUMNS, "images", "image", "objects", "ignore", "category", "expressions")


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
    duplicates: str = REFUSE,
    baseline: BaselineSettings | None = None,
) -> ScoreReport:
    """Score a result file.

    Args:
        path, root, boundary, min_score: see `scoring.score_results`.
        protocol: the evaluation protocol.
        rows: the dataset of the run; its samples with a true mask or box and without a result are failures.
        redecoder: decodes the predicted masks again.
        processes: the processes that share the work; each returns the whole report.
        on_progress: called with the bytes read so far, with baselines those of the results, the training rows, and the
            results once more.
        duplicates: what is done about several results of a row, see `result_keys.DUPLICATES`.
        baseline: also score baselines.
    Raises:
        ValueError: a result cannot be scored, none of them has a truth, or a row has two results.
        OSError: a file cannot be read.
    """
    processes = processes or Processes()
    share = (processes.rank, processes.count)
    scores = ResultScores(protocol, boundary, min_score, root)
    left_out = find_repeated_lines(path, duplicates)
    baselines: Baselines | None = None
    if baseline is not None:
        baselines = Baselines.read(path, baseline, scores, rows, redecoder, left_out, processes, on_progress)
        before = sum(Path(each).stat().st_size for each in (path, *baseline.train))
        first_progress = on_progress
        on_progress = None if first_progress is None else lambda consumed: first_progress(before + consumed)
    keys: list[tuple[int, Key]] = []
    failures: list[str] = []

    def read() -> Iterator[NamedResult]:
        """Yield each result, after checking what needs no masks."""
        for number, row in read_results(path, on_progress, share):
            if number in left_out:
                continue
            name, key = f"{path}: row {number}", get_result_key(row)
            try:
                if key is not None:
                    keys.append((number, key))
                elif rows is not None and (row.get(ERROR) is not None or has_true_masks(row)):
                    raise ValueError(
                        f"row: got {row.get('row')!r}, expected its number in the dataset, as written by `swift infer`"
                    )
                if redecoder is not None:
                    redecoder.check(row)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            if row.get(ERROR) is not None:
                failures.append(f"{name}: {row[ERROR]}")
            yield NamedResult(number, row, name)

    results = read()
    while batch := list(islice(results, 1 if redecoder is None else REDECODED)):
        if redecoder is not None:
            decoded = redecoder([result.row for result in batch])
            batch = [result._replace(row=row) for result, row in zip(batch, decoded, strict=True)]
        for result in batch:
            scores.add(result.row, result.name)
        if baselines is not None:
            baselines.add(batch)
    found = [key for part in processes.gather(keys) for key in part]
    check_rows_once(path, found)
    if rows is not None:
        _check_single_dataset(path, rows, found)
        if processes.rank == 0:
            for result in _iter_missing(rows, {number for _, (_, number) in found}):
                scores.add(result.row, result.name)
                failures.append(f"{result.name}: {NO_RESULT}")
                if baselines is not None:
                    baselines.add([result])
    parts = processes.gather((scores, failures))
    scores, failures = parts[0]
    for other, further in parts[1:]:
        scores.merge(other)
        failures = failures + further
    if baselines is not None:
        baselines.merge_processes(processes)
    scores.check(path)
    numbers = {**scores.compute(), "failures": len(failures)}
    card = RunCard.load(path)
    if card is not None:
        card.min_score = max(min_score, card.min_score or 0.0)
    if redecoder is not None:
        card = redecoder.update_card(card or RunCard())
    compared = None if baselines is None else baselines.report()
    per_class = scores.classes.per_class()
    return ScoreReport(str(path), numbers, protocol, card, failures, per_class, len(left_out), compared)


def _check_single_dataset(path: str | Path, rows: str | Path, keys: list[tuple[int, Key]]) -> None:
    datasets = sorted({str(dataset) for _, (dataset, _) in keys if dataset is not None})
    if len(datasets) > 1:
        raise ValueError(f"{path}: dataset: got results of {', '.join(datasets)}, expected those of {rows} alone")


def _iter_missing(rows: str | Path, found: set[int]) -> Iterator[NamedResult]:
    """Yield the samples of a dataset that ask for a mask or a box and whose row number is not in `found`."""
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
        yield NamedResult(None, {ERROR: NO_RESULT, **true, **copied}, f"{rows}: row {line}")
