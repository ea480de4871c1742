"""Mixes samples of several datasets into one file, in the ratios of a YAML: `himtok prepare mix`.

Contract: the parts of a mixture are datasets, as `himtok prepare` converts them, or files of samples; each has a ratio.
`rows` is the number of samples; without it there are as many as possible without repeating a part. Which samples are
taken, and their order, follow from the seed. Converted parts are written beside OUT first, so that memory holds 8 bytes
per sample.

```yaml
rows: 100000
parts:
  - {dataset: refcoco, root: /data/refer, split: train, ratio: 3, tasks: {segment: 1, mask_then_box: 0.3}}
  - {rows: mine.jsonl, ratio: 1, repeat: true}
```
"""

from __future__ import annotations

import random
import tempfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import yaml

from himtok_plugin.files.atomic_file import atomic_write
from himtok_plugin.files.output_file import check_replaceable_rows
from himtok_plugin.files.text import read_text
from himtok_plugin.validation import abridged

from .catalog import FORMATS
from .class_maps import ClassMap, check_class_map, read_class_map
from .formats.reader import Source
from .prepare import NoRowsError, PrepareJob, PrepareSummary, make_samples, skipped_file
from .row_files import iter_rows, read_row
from .tasks import TaskOptions

_PART_FIELDS = {
    "dataset": str, "root": str, "split": str, "annotations": str, "images": str, "category": str,
    "check_images": bool, "relative_paths": bool, "tasks": dict, "sentences": str, "merge_targets": bool,
    "max_masks": int, "prompts": str, "classes": (str, dict, list), "crowds": str, "rows": str, "ratio": (int, float),
    "repeat": bool,
}  # fmt: skip
_FIELDS = {"rows": int, "seed": int, "parts": list}
_DATASET_FIELDS = set(_PART_FIELDS) - {"rows", "ratio", "repeat"}


@dataclass(frozen=True)
class MixturePart:
    """One part: a dataset to convert (`job`) or a file of samples."""

    name: str
    ratio: float
    repeat: bool
    job: PrepareJob | None
    file: Path | None


@dataclass(frozen=True)
class Mixture:
    """The parsed YAML; `rows` is the number of samples."""

    parts: tuple[MixturePart, ...]
    rows: int | None
    seed: int

    @classmethod
    def load(cls, path: Path, seed: int | None = None, num_workers: int = 0, strict: bool = False) -> Mixture:
        """Read and check a YAML; relative paths in it start from its folder.

        Args:
            seed: replaces the YAML's.
        Raises:
            ValueError: a wrong value, with part and field.
        """
        try:
            content = yaml.safe_load(read_text(path))
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: is not YAML ({error})") from error
        _check_fields(content, _FIELDS, str(path))
        if not content.get("parts"):
            raise ValueError(f"{path}: parts is {abridged(content.get('parts'))}: expected a list of datasets and rows")
        rows = content.get("rows")
        if rows is not None and rows < 1:
            raise ValueError(f"{path}: rows: got {rows}, expected at least 1")
        seed = content.get("seed", 0) if seed is None else seed
        if seed < 0:
            raise ValueError(f"{path}: seed: got {seed}, expected at least 0")
        parts = tuple(
            _parse_part(entry, path, f"{path}: parts[{i}]", seed, num_workers, strict)
            for i, entry in enumerate(content["parts"])
        )
        return cls(parts, rows, seed)


def _check_fields(content: Any, fields: dict[str, Any], name: str) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{name}: is {abridged(content)}: expected a mapping")
    for key, value in content.items():
        if key not in fields:
            raise ValueError(f"{name}: got the field {key!r}, expected one of {', '.join(fields)}")
        wrong = isinstance(value, bool) and fields[key] is not bool
        if wrong or not isinstance(value, fields[key]):
            kinds = fields[key] if isinstance(fields[key], tuple) else (fields[key],)
            raise ValueError(
                f"{name}: {key}: got {abridged(value)}, expected {' or '.join(kind.__name__ for kind in kinds)}"
            )


def _parse_part(entry: Any, path: Path, name: str, seed: int, num_workers: int, strict: bool) -> MixturePart:
    _check_fields(entry, _PART_FIELDS, name)
    ratio, repeat = float(entry.get("ratio", 1)), entry.get("repeat", False)
    if not 0 < ratio < float("inf"):
        raise ValueError(f"{name}: ratio: got {ratio:g}, expected a number above 0")
    if ("rows" in entry) == ("dataset" in entry):
        raise ValueError(f"{name}: got {', '.join(entry) or 'nothing'}, expected either a dataset or rows")
    folder = path.parent
    if "rows" in entry:
        if extra := _DATASET_FIELDS & set(entry):
            raise ValueError(f"{name}: got {', '.join(sorted(extra))} beside rows, expected ratio and repeat only")
        file = folder / entry["rows"]
        if not file.is_file():
            raise ValueError(f"{name}: rows: got {str(file)!r}, which is no file")
        return MixturePart(entry["rows"], ratio, repeat, None, file)
    if "root" not in entry:
        raise ValueError(f"{name}: has no root: expected the dataset's folder")
    dataset = entry["dataset"]
    splits = FORMATS[dataset].splits if dataset in FORMATS else ("",)
    settings: dict[str, Any] = {key: Path(entry[key]) for key in ("annotations", "images") if key in entry}
    settings |= {key: entry[key] for key in ("check_images", "relative_paths", "category", "crowds") if key in entry}
    if "classes" in entry:
        settings["classes"] = _parse_classes(entry["classes"], folder, f"{name}: classes")
    source = Source(dataset, folder / entry["root"], entry.get("split", splits[0]), **settings)
    options = TaskOptions(**{key: entry[key] for key in ("sentences", "merge_targets", "max_masks") if key in entry})
    prompts = folder / entry["prompts"] if "prompts" in entry else None
    try:
        job = PrepareJob(source, entry.get("tasks", {}), options, prompts, None, seed, num_workers, strict)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return MixturePart(f"{dataset}:{source.split}", ratio, repeat, job, None)


def _parse_classes(value: Any, folder: Path, name: str) -> ClassMap:
    try:
        if not isinstance(value, str):
            return check_class_map(value)
        file = folder / value
        return read_class_map(str(file) if file.is_file() else value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


@dataclass
class MixSummary:
    """The figures of a mixture.

    Attributes:
        rows: samples in total.
        parts: for each part of the YAML its name, its samples in the mixture, and how many it has (`at_hand`).
        skipped: reason -> number of skipped annotations.
        unused: reason -> number of valid images and objects of the datasets that no sample is about.
        examples: reason -> the first detail of what was skipped or is unused.
        notes: how the datasets were read, where that is not obvious.
    """

    rows: int
    parts: list[dict[str, Any]]
    skipped: dict[str, int]
    unused: dict[str, int]
    examples: dict[str, str]
    notes: list[str]


def mix(mixture: Mixture, out: Path, on_progress: Callable[[int, int], None] | None = None) -> MixSummary:
    """Write the mixture, and OUT.skipped.jsonl if anything was skipped.

    Args:
        on_progress: called with (samples written, samples in total).
    Raises:
        ValueError: a part has too few samples, or cannot be read.
    """
    check_replaceable_rows(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder,
        atomic_write(out) as file,
        atomic_write(skipped_file(out), empty=False) as skip_log,
    ):
        losses = PrepareSummary()
        sources = [
            _PartSamples(part, mixture, Path(folder) / f"{i}.jsonl", skip_log, losses)
            for i, part in enumerate(mixture.parts)
        ]
        quotas = _part_quotas(mixture, [len(samples) for samples in sources])
        total = sum(quotas)
        for n, i in enumerate(_shuffle_parts(quotas, random.Random(f"{mixture.seed}/mixture")), 1):
            file.write(sources[i].next())
            if on_progress is not None and (n % 256 == 0 or n == total):
                on_progress(n, total)
    parts = [
        {"part": part.name, "rows": quota, "at_hand": len(samples)}
        for part, quota, samples in zip(mixture.parts, quotas, sources, strict=True)
    ]
    return MixSummary(total, parts, losses.skipped, losses.unused, losses.examples, losses.notes)


class _PartSamples:
    """The samples of a part in random order; after the last one they are shuffled again.

    Args:
        losses: gets what was skipped or is in no sample.
    """

    def __init__(
        self, part: MixturePart, mixture: Mixture, own: Path, skip_log: BinaryIO, losses: PrepareSummary
    ) -> None:
        self._path = part.file or own
        if part.job is not None:
            summary = PrepareSummary(
                skipped=losses.skipped, unused=losses.unused, examples=losses.examples, notes=losses.notes
            )
            with open(own, "wb") as file:
                try:
                    for sample in make_samples(part.job, summary, skip_log):
                        file.write(sample.line + b"\n")
                except NoRowsError as error:
                    raise NoRowsError(f"part {part.name}: {error}") from error
        self._begins, self._ends = array("q"), array("q")
        for row in iter_rows(self._path):
            if row.line.strip():
                self._begins.append(row.begin)
                self._ends.append(row.end)
        self._rng = np.random.default_rng([mixture.seed, len(self._begins)])
        self._order: Iterator[int] = iter(())
        self._file = open(self._path, "rb")  # noqa: SIM115 stays open while the mixture is written

    def __len__(self) -> int:
        return len(self._begins)

    def next(self) -> bytes:
        """The next line."""
        number = next(self._order, None)
        if number is None:
            self._order = iter(self._rng.permutation(len(self._begins)))
            number = next(self._order)
        return read_row(self._file, self._begins[int(number)], self._ends[int(number)])

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


def _part_quotas(mixture: Mixture, available: list[int]) -> list[int]:
    """The number of samples of each part, by the largest remainder method.

    Raises:
        ValueError: a part that may not be repeated has too few samples.
    """
    for part, count in zip(mixture.parts, available, strict=True):
        if not count:
            raise ValueError(f"part {part.name}: has no rows")
    ratios = [part.ratio for part in mixture.parts]
    whole = sum(ratios)
    rows = mixture.rows
    if rows is None:
        limits = [n * whole / part.ratio for part, n in zip(mixture.parts, available, strict=True) if not part.repeat]
        if not limits:
            raise ValueError("rows: missing, and every part may be repeated: expected a number of rows")
        rows = int(min(limits) + 1e-9)
    exact = [rows * ratio / whole for ratio in ratios]
    quotas = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (quotas[i] - exact[i], i))
    for i in by_remainder[: rows - sum(quotas)]:
        quotas[i] += 1
    for part, quota, count in zip(mixture.parts, quotas, available, strict=True):
        if quota > count and not part.repeat:
            raise ValueError(
                f"part {part.name}: got {count} rows, expected {quota} for its ratio {part.ratio:g}: lower rows or its "
                "ratio, or give repeat: true"
            )
    return quotas


def _shuffle_parts(quotas: list[int], rng: random.Random) -> Iterator[int]:
    """The part of each sample, at random; each part occurs as often as its quota.

    The mixture begins with one sample of each part, because libraries infer the columns of a file from its beginning.
    """
    left = list(quotas)
    for i in range(len(left)):
        if left[i]:
            left[i] -= 1
            yield i
    total = sum(left)
    while total:
        place = rng.randrange(total)
        chosen = 0
        while place >= left[chosen]:
            place -= left[chosen]
            chosen += 1
        left[chosen] -= 1
        total -= 1
        yield chosen
