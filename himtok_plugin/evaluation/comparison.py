"""Two result files of the same rows: by how much they differ, how sure that is, and where most.

Contract: `compare_results` scores both under one protocol and puts intervals around the differences by the paired
bootstrap (Efron, 1979): images are drawn anew, with all of their rows in both files, since rows about one image are
not independent. Kept in memory are a few numbers per row. Does not know pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from himtok_plugin.metrics.segmentation import PRECISION_LEVELS

from .protocols import Protocol
from .scoring import (
    PLAIN,
    asks_for_masks,
    check_min_score,
    drop_low_scores,
    get_question,
    load_result_runs,
    read_results,
)

RESAMPLES = 2000
CONFIDENCE = 0.95
_CHUNK = 50  # resamples at once: bounds memory, images times this many numbers
IOU, INTERSECTION, UNION, TARGET, ANSWERED = range(5)


@dataclass(frozen=True)
class Difference:
    """One number of both runs.

    Attributes:
        name: of the metric.
        a, b: its values; None over no samples.
        low, high: interval around b - a that holds the true difference with the confidence asked for; None where
            there is no difference to tell of.
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
    """One row of both runs: its name, and the IoU that each reached."""

    key: Any
    a: float
    b: float


@dataclass(frozen=True)
class RunComparison:
    """What two runs differ in.

    Attributes:
        protocol: the rules of all numbers.
        differences: by metric.
        rows: all rows, those first whose IoU fell most from a to b.
        images: number of images that were drawn from.
        confidence, resamples: of the intervals.
    """

    protocol: Protocol
    differences: list[Difference]
    rows: list[ResultDifference]
    images: int
    confidence: float = CONFIDENCE
    resamples: int = RESAMPLES

    def to_dict(self, worst: int = 20) -> dict[str, Any]:
        """JSON form, with the `worst` rows of either sign."""
        return {
            "protocol": self.protocol.name,
            "confidence": self.confidence,
            "resamples": self.resamples,
            "images": self.images,
            "rows": len(self.rows),
            "metrics": {d.name: {"a": d.a, "b": d.b, "difference": [d.low, d.high]} for d in self.differences},
            "fell": [vars(row) for row in self.rows[:worst] if row.b < row.a],
            "rose": [vars(row) for row in self.rows[::-1][:worst] if row.b > row.a],
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
) -> RunComparison:
    """Compare two result files.

    Args:
        a, b: results of `swift infer` on the same rows, in any order.
        protocol: the rules.
        root, min_score: see `scoring.score_results`.
        seed: of the draws.
        resamples: number of draws, at least 1.
        on_progress: called with the bytes read so far, of both files.
    Raises:
        ValueError: rows that cannot be scored, that occur in one file only, or whose truth differs. Rows that ask for
            no mask are passed over.
        OSError: a file cannot be read.
    """
    check_min_score(min_score)
    if resamples < 1:
        raise ValueError(f"resamples: got {resamples!r}, expected at least 1")
    size = Path(a).stat().st_size
    first = _counts(a, protocol, root, min_score, on_progress)
    second = _counts(b, protocol, root, min_score, None if on_progress is None else lambda n: on_progress(size + n))
    _check_same_rows(a, b, first, second)
    keys = list(first)
    counts = np.array([[first[key][0], second[key][0]] for key in keys])  # (rows, 2, 5)
    images = np.unique([first[key][1] for key in keys], return_inverse=True)[1]
    ious = counts[:, :, IOU]
    order = np.argsort(ious[:, 1] - ious[:, 0], kind="stable")
    rows = [ResultDifference(keys[i], float(ious[i, 0]), float(ious[i, 1])) for i in order]
    names, parts, wholes = _shares(counts, protocol)
    differences = _differences(names, parts, wholes, images, resamples, seed)
    return RunComparison(protocol, differences, rows, int(images.max()) + 1, resamples=resamples)


def _differences(
    names: Sequence[str], parts: np.ndarray, wholes: np.ndarray, images: np.ndarray, resamples: int, seed: int
) -> list[Difference]:
    """Of every metric, with its interval over images.

    Args:
        names: of the m metrics.
        parts, wholes: (rows, 2, m), whose sums' quotients the metrics of both runs are.
        images: (rows,) number of each row's image.
    """
    number = int(images.max()) + 1
    sums = np.zeros((2, number, *parts.shape[1:]))  # parts and wholes, images, runs, metrics
    np.add.at(sums[0], images, parts)
    np.add.at(sums[1], images, wholes)
    draws = _bootstrap(sums, resamples, np.random.default_rng(seed))
    values = _divided(parts.sum(0), wholes.sum(0))
    tail = 100 * (1 - CONFIDENCE) / 2
    differences = []
    for i, name in enumerate(names):
        drawn = draws[:, 1, i] - draws[:, 0, i]
        drawn = drawn[~np.isnan(drawn)]  # draws without a sample of this kind say nothing
        known = not np.isnan(values[:, i]).any() and drawn.size > 0
        low, high = np.percentile(drawn, [tail, 100 - tail]).tolist() if known else (None, None)
        pair = [None if np.isnan(value) else float(value) for value in values[:, i]]
        differences.append(Difference(name, *pair, low, high))
    return differences


def result_key(row: dict[str, Any], position: int) -> Any:
    """What tells a row apart in result files: its number in the dataset where it is known, else its place."""
    number = row.get("row")
    return position if number is None else number


def _counts(path, protocol: Protocol, root, min_score: float, on_progress) -> dict[Any, tuple[list[float], str, str]]:
    """Row -> (counts, image, question)."""
    found: dict[Any, tuple[list[float], str, str]] = {}
    for number, row in read_results(path, on_progress):
        key = result_key(row, number)
        if key in found:
            raise ValueError(f"{path}: row {number}: is the second of number {key!r}: expected each row once")
        try:
            if not asks_for_masks(row):
                continue
            protocol.check_question(get_question(row), row.get("expressions"))
            overlap = load_result_runs(drop_low_scores(row, min_score), root).overlap(protocol)
        except ValueError as error:
            raise ValueError(f"{path}: row {number}: {error}") from error
        counts = [overlap.iou, overlap.intersection, overlap.union, overlap.target, overlap.predicted > 0]
        found[key] = counts, _image_name(row, key), get_question(row)
    if not found:
        raise ValueError(f"{path}: holds no rows with true masks, expected JSON lines written by `swift infer`")
    return found


def _image_name(row: dict[str, Any], key: Any) -> str:
    images = row.get("images") or [f"row {key}"]
    first = images[0].get("path") if isinstance(images[0], dict) else images[0]
    return first if isinstance(first, str) else f"row {key}"


def _check_same_rows(a, b, first: dict, second: dict) -> None:
    for path, here, there in ((b, second, first), (a, first, second)):
        missing = [key for key in there if key not in here]
        if missing:
            raise ValueError(f"{path}: lacks {len(missing)} rows of the other file, row {missing[0]!r} among them")
    for key, (counts, _, question) in first.items():
        other = second[key]
        if counts[TARGET] != other[0][TARGET] or question != other[2]:
            raise ValueError(
                f"{b}: row {key!r} asks {other[2]!r:.80} with {other[0][TARGET]} true pixels: expected "
                f"{question!r:.80} with {counts[TARGET]}, as in {a}"
            )


def _shares(counts: np.ndarray, protocol: Protocol) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Every metric as a share of sums over rows: names, parts and wholes (rows, 2, metrics)."""
    iou, answered = counts[:, :, IOU], counts[:, :, ANSWERED] > 0
    target = counts[:, :, TARGET] > 0
    one = np.ones_like(iou)
    shares = {"cIoU": (counts[:, :, INTERSECTION], counts[:, :, UNION]), "gIoU": (iou, one)}
    over = target.astype(float) if protocol.precision_over_targets else one
    for level in PRECISION_LEVELS:
        shares[f"P@{level}"] = (iou >= level) * over, over
    shares["N-acc"] = (~target & ~answered).astype(float), (~target).astype(float)
    shares["T-acc"] = (target & answered).astype(float), target.astype(float)
    parts, wholes = (np.stack([pair[i] for pair in shares.values()], axis=-1).astype(float) for i in (0, 1))
    return list(shares), parts, wholes


def _bootstrap(sums: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Values of every metric of both runs in draws of as many images as there are: (resamples, 2, metrics)."""
    images = sums.shape[1]
    flat = sums.reshape(2, images, -1)
    drawn = []
    for begin in range(0, resamples, _CHUNK):
        count = min(_CHUNK, resamples - begin)
        picks = rng.integers(0, images, (count, images))
        times = np.stack([np.bincount(pick, minlength=images) for pick in picks]).astype(float)
        drawn.append(_divided(times @ flat[0], times @ flat[1]))
    return np.concatenate(drawn).reshape(resamples, *sums.shape[2:])


def _divided(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
