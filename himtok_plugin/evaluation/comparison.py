"""Compare two result files of the same samples: differences of all metrics with intervals, and differences per sample.

Contract: `compare_results` scores both files under one protocol. The intervals come from the paired bootstrap (Efron,
1979): images are resampled, each with all of its results in both files, because results about one image are not
independent. A few numbers per result stay in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from himtok_plugin.metrics.segmentation import PRECISION_LEVELS
from himtok_plugin.validation import counted

from .protocols import PLAIN, Protocol
from .result_keys import REFUSE, Key, check_rows_once, find_repeated_lines, get_result_key, name_datasets
from .results import (
    ERROR,
    PREDICTED,
    TRUE,
    check_min_score,
    drop_low_scores,
    get_image,
    get_question,
    has_true_masks,
    load_result_runs,
    read_results,
)

RESAMPLES = 2000
CONFIDENCE = 0.95
_RESAMPLES_AT_ONCE = 50  # bounds memory to this many numbers per image
IOU, INTERSECTION, UNION, TARGET, ANSWERED = range(5)  # columns of the counts of a result


@dataclass(frozen=True)
class Difference:
    """One metric of both runs.

    Attributes:
        name: of the metric.
        a, b: its values; None if there are no samples of its kind.
        low, high: confidence interval of b - a; None if one of the values is None.
    """

    name: str
    a: float | None
    b: float | None
    low: float | None
    high: float | None

    @property
    def difference(self) -> float | None:
        """b - a, None where one of them is None."""
        return None if self.a is None or self.b is None else self.b - self.a

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high), None where there is no difference."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def significant(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True)
class ResultDifference:
    """One sample in both runs.

    Attributes:
        key: the number of its row; `3 of testA.jsonl` in results of several datasets. The number of its line in results
            without row numbers.
        a, b: its IoU in each run.
        lines: of the sample in both files; not compared, because the order of results does not matter.
    """

    key: int | str
    a: float
    b: float
    lines: tuple[int, int] = field(default=(0, 0), compare=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"key": self.key, "a": self.a, "b": self.b}


@dataclass(frozen=True)
class RunComparison:
    """The differences between two runs.

    Attributes:
        protocol: the evaluation protocol of all metrics.
        differences: one per metric.
        rows: one per sample, in order of b - a: the largest loss first.
        images: number of different images.
        errors: number of results with an error in a and in b; they are wrong answers.
        confidence, resamples: of the intervals.
    """

    protocol: Protocol
    differences: list[Difference]
    rows: list[ResultDifference]
    images: int
    confidence: float = CONFIDENCE
    resamples: int = RESAMPLES
    errors: tuple[int, int] = (0, 0)

    def to_dict(self, worst: int = 20) -> dict[str, Any]:
        """JSON form, with at most `worst` samples whose IoU fell and as many whose IoU rose."""
        return {
            "protocol": self.protocol.name,
            "confidence": self.confidence,
            "resamples": self.resamples,
            "images": self.images,
            "rows": len(self.rows),
            "errors": dict(zip("ab", self.errors, strict=True)),
            "metrics": {d.name: {"a": d.a, "b": d.b, "difference": [d.low, d.high]} for d in self.differences},
            "fell": [row.to_dict() for row in self.rows[:worst] if row.b < row.a],
            "rose": [row.to_dict() for row in self.rows[::-1][:worst] if row.b > row.a],
        }


def compare_results(
    a: str | Path,
    b: str | Path,
    protocol: Protocol = PLAIN,
    root: str | Path | None = None,
    min_score: float = 0.0,
    seed: int = 0,
    resamples: int = RESAMPLES,
    on_progress: Callable[[int], None] | None = None,
    duplicates: str = REFUSE,
) -> RunComparison:
    """Compare two result files.

    Args:
        a, b: result files of `swift infer` on the same samples of one or several datasets, in any order. Results
            without true masks are left out; those with an error are wrong answers.
        protocol: the evaluation protocol.
        root, min_score: see `scoring.score_results`.
        seed: seed of the bootstrap.
        resamples: number of bootstrap draws, at least 1.
        on_progress: called with the bytes read so far, of both files together.
        duplicates: what is done about several results of a row, see `result_keys.DUPLICATES`.
    Raises:
        ValueError: a result cannot be scored, a row has two, or it has one in one file only or with another question or
            truth in the other.
        OSError: a file cannot be read.
    """
    check_min_score(min_score)
    if resamples < 1:
        raise ValueError(f"resamples: got {resamples!r}, expected at least 1")
    size = Path(a).stat().st_size
    first = _read_samples(a, protocol, root, min_score, duplicates, on_progress)
    continued = None if on_progress is None else lambda consumed: on_progress(size + consumed)
    second = _read_samples(b, protocol, root, min_score, duplicates, continued)
    _check_same_samples(a, b, first, second)
    keys = list(first)
    counts = np.array([[first[key].counts, second[key].counts] for key in keys])  # (rows, 2, 5)
    images = np.unique([first[key].image for key in keys], return_inverse=True)[1]
    ious = counts[:, :, IOU]
    order = np.argsort(ious[:, 1] - ious[:, 0], kind="stable")
    rows = [
        ResultDifference(
            _format_key(keys[i]), float(ious[i, 0]), float(ious[i, 1]), (first[keys[i]].line, second[keys[i]].line)
        )
        for i in order
    ]
    errors = tuple(sum(sample.failed for sample in samples.values()) for samples in (first, second))
    names, parts, wholes = _metric_ratios(counts, protocol)
    differences = _estimate_differences(names, parts, wholes, images, resamples, seed)
    number = int(images.max()) + 1
    return RunComparison(protocol, differences, rows, number, resamples=resamples, errors=(errors[0], errors[1]))


def _estimate_differences(
    names: Sequence[str], parts: np.ndarray, wholes: np.ndarray, images: np.ndarray, resamples: int, seed: int
) -> list[Difference]:
    """The difference of every metric, with its bootstrap interval.

    Args:
        names: of the m metrics.
        parts, wholes: (rows, 2, m); the metrics of both runs are the quotients of their sums over rows.
        images: (rows,) index of each row's image.
    """
    number = int(images.max()) + 1
    sums = np.zeros((2, number, *parts.shape[1:]))  # parts and wholes, images, runs, metrics
    np.add.at(sums[0], images, parts)
    np.add.at(sums[1], images, wholes)
    draws = _bootstrap(sums, resamples, np.random.default_rng(seed))
    values = _divide_or_nan(parts.sum(0), wholes.sum(0))
    tail = 100 * (1 - CONFIDENCE) / 2
    differences = []
    for i, name in enumerate(names):
        drawn = draws[:, 1, i] - draws[:, 0, i]
        drawn = drawn[~np.isnan(drawn)]  # NaN: the draw has no sample of this kind
        known = not np.isnan(values[:, i]).any() and drawn.size > 0
        low, high = np.percentile(drawn, [tail, 100 - tail]).tolist() if known else (None, None)
        value_a, value_b = (None if np.isnan(value) else float(value) for value in values[:, i])
        differences.append(Difference(name, value_a, value_b, low, high))
    return differences


class _Sample(NamedTuple):
    """What is compared of a result: its counts, image and question, its line, and whether it has an error."""

    counts: list[float]
    image: str
    question: str
    line: int
    failed: bool


_SampleKey = tuple[str | None, int]  # name of the dataset, see `name_datasets`; number of the row, or else of the line


def _read_samples(
    path: str | Path,
    protocol: Protocol,
    root: str | Path | None,
    min_score: float,
    duplicates: str,
    on_progress: Callable[[int], None] | None,
) -> dict[_SampleKey, _Sample]:
    left_out = find_repeated_lines(path, duplicates)
    found: list[tuple[Key, _Sample]] = []
    numbered: list[tuple[int, Key]] = []
    for line, row in read_results(path, on_progress):
        if line in left_out:
            continue
        key = get_result_key(row)
        if key is not None:
            numbered.append((line, key))
        failed = row.get(ERROR) is not None
        try:
            if row.get(TRUE) is None if failed else not has_true_masks(row):
                continue
            if not failed:
                protocol.check_question(get_question(row), row.get("expressions"))
            shown = {**row, PREDICTED: []} if failed else drop_low_scores(row, min_score)
            overlap = load_result_runs(shown, root).overlap(protocol)
        except (ValueError, OSError) as error:
            if failed:  # the truth can be what could not be read; `himtok eval` leaves such a result out as well
                continue
            raise ValueError(f"{path}: row {line}: {error}") from error
        counts = [overlap.iou, overlap.intersection, overlap.union, overlap.target, overlap.predicted > 0]
        if failed:  # wrong also without a target, where no mask would be right
            counts[IOU], counts[ANSWERED] = 0.0, overlap.target == 0
        image = get_image(row, line)
        found.append((key or (None, line), _Sample(counts, image, get_question(row), line, failed)))
    check_rows_once(path, numbered)
    if not found:
        raise ValueError(f"{path}: holds no rows with true masks, expected JSON lines written by `swift infer`")
    names = name_datasets(dataset for (dataset, _), _ in found)
    samples = {(names[dataset], number): sample for (dataset, number), sample in found}
    if len(samples) != len(found):
        raise ValueError(f"{path}: row: got results with and without number, expected one of both")
    return samples


def _format_key(key: _SampleKey) -> int | str:
    dataset, number = key
    return number if dataset is None else f"{number} of {dataset}"


def _check_same_samples(
    a: str | Path, b: str | Path, first: dict[_SampleKey, _Sample], second: dict[_SampleKey, _Sample]
) -> None:
    for path, here, there in ((b, second, first), (a, first, second)):
        missing = [key for key in there if key not in here]
        if missing:
            number = _format_key(missing[0])
            raise ValueError(f"{path}: lacks {counted(len(missing), 'row')} of the other file, row {number} among them")
    for key, sample in first.items():
        other = second[key]
        if sample.counts[TARGET] != other.counts[TARGET] or sample.question != other.question:
            raise ValueError(
                f"{b}: row {_format_key(key)} asks {other.question!r:.80} with {other.counts[TARGET]} true pixels: "
                f"expected {sample.question!r:.80} with {sample.counts[TARGET]}, as in {a}"
            )


def _metric_ratios(counts: np.ndarray, protocol: Protocol) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Every metric as a quotient of two sums over rows: names, parts and wholes (rows, 2, metrics)."""
    iou, answered = counts[:, :, IOU], counts[:, :, ANSWERED] > 0
    target = counts[:, :, TARGET] > 0
    one = np.ones_like(iou)
    ratios = {"cIoU": (counts[:, :, INTERSECTION], counts[:, :, UNION]), "gIoU": (iou, one)}
    over = target.astype(float) if protocol.precision_over_targets else one
    for level in PRECISION_LEVELS:
        ratios[f"P@{level}"] = (iou >= level) * over, over
    ratios["N-acc"] = (~target & ~answered).astype(float), (~target).astype(float)
    ratios["T-acc"] = (target & answered).astype(float), target.astype(float)
    parts, wholes = (np.stack([pair[i] for pair in ratios.values()], axis=-1).astype(float) for i in (0, 1))
    return list(ratios), parts, wholes


def _bootstrap(sums: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Metrics of both runs in bootstrap draws, each of as many images as there are: (resamples, 2, metrics)."""
    images = sums.shape[1]
    flat = sums.reshape(2, images, -1)
    drawn = []
    for begin in range(0, resamples, _RESAMPLES_AT_ONCE):
        count = min(_RESAMPLES_AT_ONCE, resamples - begin)
        picks = rng.integers(0, images, (count, images))
        times = np.stack([np.bincount(pick, minlength=images) for pick in picks]).astype(float)
        drawn.append(_divide_or_nan(times @ flat[0], times @ flat[1]))
    return np.concatenate(drawn).reshape(resamples, *sums.shape[2:])


def _divide_or_nan(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
