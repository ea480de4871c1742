"""Datasets of the catalog by name in ms-swift: `--dataset refcoco:train --data_root DIR`.

Contract: a split is prepared once, as by `himtok prepare`, into ms-swift's cache. The name of the cached file depends
on the data folder, the tasks and the annotation files, so a change of these prepares another file. ms-swift then reads
it as any other dataset, with `#1000` and streaming. Of several processes, also of several runs, one prepares it, and
the others wait and then read its file.
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
from swift.utils import get_logger

from himtok_plugin import __version__
from himtok_plugin.data.catalog import FORMATS, Format, find_format
from himtok_plugin.jobs.file_lock import hold_lock
from himtok_plugin.swift_integration.options.current_arguments import get_current_arguments

logger = get_logger()
_DEPTH = 3  # levels of folders below the data folder that are searched for annotation files


def register_prepared_datasets() -> None:
    """Register every dataset of the catalog with ms-swift; idempotent."""
    for format in FORMATS.values():
        subsets = [
            SubsetDataset(name=split, subset=split, is_weak_subset=i > 0) for i, split in enumerate(format.splits)
        ]
        meta = DatasetMeta(dataset_name=format.name, subsets=subsets, loader=PreparedDatasetLoader, help=format.about)
        register_dataset(meta, exist_ok=True)


class PreparedDatasetLoader(DatasetLoader):
    """Prepares a dataset, then loads the file as ms-swift loads any local file."""

    def load(self, dataset_syntax: Any = None, dataset_meta: Any = None, *, use_hf: bool | None = None) -> Any:
        name = dataset_meta.dataset_name
        dataset_syntax.dataset = name  # ms-swift has set a hub id, and these datasets have none
        splits = dataset_syntax.subsets or [find_format(name).splits[0]]
        return self.concat_datasets(
            [self._load_dataset_path(str(self._find_or_prepare(name, split)), dataset_meta) for split in splits]
        )

    def _find_or_prepare(self, name: str, split: str) -> Path:
        """Return the cached file of a split; prepare it if there is none."""
        from himtok_plugin.data.formats.reader import Source
        from himtok_plugin.data.prepare import PrepareJob, skipped_file
        from himtok_plugin.data.tasks import parse_task_share
        from himtok_plugin.files.atomic_file import remove_unfinished

        settings = get_current_arguments()
        root = find_data_root(find_format(name), [] if settings is None else settings.data_root)
        tasks = dict(parse_task_share(text, "data_tasks") for text in ([] if settings is None else settings.data_tasks))
        workers = self.num_proc if self.num_proc and self.num_proc > 1 else 0
        job = PrepareJob(Source(name, root, split), tasks, num_workers=workers, strict=self.strict)
        folder = Path(get_cache_dir(), "datasets", "himtok")
        split = job.source.split  # "valid" and "Val" are "val"
        out = folder / f"{name}-{split}-{_fingerprint(job)}.jsonl"
        if out.is_file():
            return out
        folder.mkdir(parents=True, exist_ok=True)
        # A lock instead of a barrier: the processes of a run can be at different places, and a barrier ends a run that
        # waits for longer than its timeout.
        waits = f"{name}:{split}: waiting for another process that prepares {out}"
        with hold_lock(out.with_name(f"{out.name}.lock"), lambda: logger.info(waits)) as is_alone:
            if not out.is_file():
                if is_alone:
                    for file in (out, skipped_file(out)):
                        remove_unfinished(file)
                self._prepare(job, out)
        return out

    def _prepare(self, job: Any, out: Path) -> None:
        from himtok_plugin.data.prepare import prepare_samples

        logger.info(f"{job.source.name}:{job.source.split}: preparing {out} from {job.source.root}")
        name = f"{job.source.name}:{job.source.split}"
        summary = prepare_samples(job, out)
        logger.info(f"{name}: {summary.rows} samples, {summary.masks} masks")
        for note in summary.notes:
            logger.warning(f"{name}: {note}")
        for kind, losses in (("skipped", summary.skipped), ("unused", summary.unused)):
            for reason, count in losses.items():
                logger.warning(f"{name}: {kind} {count}: {reason}; see {out}.skipped.jsonl")


def find_data_root(format: Format, entries: list[str]) -> Path:
    """Find a dataset's folder.

    Args:
        format: the dataset's format.
        entries: values of `--data_root`. NAME=DIR is the folder of one dataset; DIR holds all others, each in
            DIR/NAME or in DIR itself.
    Raises:
        ValueError: no entry is for this dataset.
    """
    common = None
    for entry in entries:
        name, equals, folder = entry.partition("=")
        if equals and name == format.name:
            return Path(folder)
        if not (equals and name in FORMATS):
            common = Path(entry)
    if common is None:
        raise ValueError(
            f"data_root: got {entries}, expected the folder of {format.name!r}: --data_root DIR or {format.name}=DIR"
        )
    own = common / format.name
    # REFER's datasets share one data folder with their images.
    return own if own.is_dir() and not format.reader.startswith("refer:") else common


def _fingerprint(job: Any) -> str:
    """Return a hash of everything that the prepared rows depend on."""
    source = job.source
    files = sorted(_list_annotation_files(source.root, _DEPTH))
    tasks = [sorted(job.tasks.items()), job.options.sentences]
    content = [__version__, source.name, str(source.root.absolute()), source.split, tasks, files]
    return blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()


def _list_annotation_files(folder: Path, depth: int) -> list[tuple[str, int, int]]:
    """Return path, size and modification time of folders and of files that are no JPEG images.

    Files below `depth` levels are not listed; the time of their folder changes when files are added or removed.
    """
    found: list[tuple[str, int, int]] = []
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return found
    for entry in entries:
        if entry.is_dir():
            found.append((entry.path, 0, entry.stat().st_mtime_ns))
            if depth:
                found += _list_annotation_files(Path(entry.path), depth - 1)
        elif Path(entry.name).suffix.lower() not in (".jpg", ".jpeg"):
            status = entry.stat()
            found.append((entry.path, status.st_size, status.st_mtime_ns))
    return found
