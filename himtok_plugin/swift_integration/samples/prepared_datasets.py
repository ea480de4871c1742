"""The catalog's datasets under their names in ms-swift: `--dataset refcoco:train --data_root DIR`.

Contract: a split is converted once, as `himtok prepare` does it, into ms-swift's cache; the file is named after all
that its rows depend on, so that another root, task or annotation file makes another one. From there on it is a dataset
of rows like any other, `#1000` and streaming included. Under several processes the first one converts.
Does not know formats and tasks.
"""

from __future__ import annotations

import json
import os
from hashlib import blake2b
from pathlib import Path
from typing import Any

from modelscope.hub.utils.utils import get_cache_dir
from swift.dataset import DatasetMeta, register_dataset
from swift.dataset.dataset_meta import SubsetDataset
from swift.dataset.loader import DatasetLoader
from swift.utils import get_logger, safe_ddp_context

from himtok_plugin import __version__
from himtok_plugin.data.catalog import FORMATS, Format, format_named
from himtok_plugin.swift_integration.options.current_arguments import get_current_arguments

logger = get_logger()
_DEPTH = 3  # folders below the root in which annotation files are looked at


def register_prepared_datasets() -> None:
    """Make every dataset of the catalog known to ms-swift; idempotent."""
    for format in FORMATS.values():
        subsets = [
            SubsetDataset(name=split, subset=split, is_weak_subset=i > 0) for i, split in enumerate(format.splits)
        ]
        meta = DatasetMeta(dataset_name=format.name, subsets=subsets, loader=PreparedDatasetLoader, help=format.about)
        register_dataset(meta, exist_ok=True)


class PreparedDatasetLoader(DatasetLoader):
    """ms-swift's loader of a local file, which is converted first."""

    def load(self, dataset_syntax=None, dataset_meta=None, *, use_hf=None):
        name = dataset_meta.dataset_name
        dataset_syntax.dataset = name  # ms-swift put an id of a hub there, of which there is none
        splits = dataset_syntax.subsets or [format_named(name).splits[0]]
        return self.concat_datasets(
            [self._load_dataset_path(str(self._prepared(name, split)), dataset_meta) for split in splits]
        )

    def _prepared(self, name: str, split: str) -> Path:
        from himtok_plugin.data.formats.reader import Source
        from himtok_plugin.data.prepare import Job
        from himtok_plugin.data.tasks import named_share

        settings = get_current_arguments()
        root = data_root(format_named(name), [] if settings is None else settings.data_root)
        tasks = dict(named_share(text, "data_tasks") for text in ([] if settings is None else settings.data_tasks))
        workers = self.num_proc if self.num_proc and self.num_proc > 1 else 0
        job = Job(Source(name, root, split), tasks, num_workers=workers, strict=self.strict)
        folder = Path(get_cache_dir(), "datasets", "himtok")
        out = folder / f"{name}-{split}-{_fingerprint(job)}.jsonl"
        with safe_ddp_context(None, True):
            if not out.is_file():
                self._prepare(job, out)
        return out

    def _prepare(self, job: Any, out: Path) -> None:
        from himtok_plugin.data.prepare import prepare_samples

        logger.info(f"{job.source.name}:{job.source.split}: preparing {out} from {job.source.root}")
        summary = prepare_samples(job, out)
        if not summary.rows:
            out.unlink()
            raise ValueError(f"{job.source.name}:{job.source.split}: gave no rows; skipped: {summary.skipped}")
        logger.info(f"{job.source.name}:{job.source.split}: {summary.rows} rows, {summary.masks} masks")
        for reason, count in summary.skipped.items():
            logger.warning(f"{job.source.name}:{job.source.split}: skipped {count}: {reason}; see {out}.skipped.jsonl")


def data_root(format: Format, given: list[str]) -> Path:
    """A dataset's folder: of `--data_root`, `NAME=DIR` for this one, else DIR/NAME or DIR itself.

    Raises:
        ValueError: none was given.
    """
    common = None
    for entry in given:
        name, equals, folder = entry.partition("=")
        if equals and name == format.name:
            return Path(folder)
        if not (equals and name in FORMATS):
            common = Path(entry)
    if common is None:
        raise ValueError(
            f"data_root: got {given}, expected the folder of {format.name!r}: --data_root DIR or {format.name}=DIR"
        )
    own = common / format.name
    # REFER's datasets lie together in their root, with the images beside.
    return own if own.is_dir() and not format.reader.startswith("refer:") else common


def _fingerprint(job: Any) -> str:
    """Hexadecimal digits that change with everything that the rows depend on."""
    source = job.source
    files = sorted(_annotation_files(source.root, _DEPTH))
    asked = [sorted(job.tasks.items()), job.options.sentences]
    content = [__version__, source.name, str(source.root.absolute()), source.split, asked, files]
    return blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()


def _annotation_files(folder: Path, depth: int) -> list[tuple[str, int, int]]:
    """(name, size, time) of what is no picture; a change of many small files shows in their folder's time."""
    found = []
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return found
    for entry in entries:
        if entry.is_dir():
            found.append((entry.path, 0, entry.stat().st_mtime_ns))
            if depth:
                found += _annotation_files(Path(entry.path), depth - 1)
        elif Path(entry.name).suffix.lower() not in (".jpg", ".jpeg"):
            status = entry.stat()
            found.append((entry.path, status.st_size, status.st_mtime_ns))
    return found
