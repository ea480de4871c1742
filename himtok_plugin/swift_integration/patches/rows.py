"""Datasets: rows with masks pass ms-swift's loading and preprocessing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from swift.utils import get_logger

from himtok_plugin.data.samples import CODES, MESSAGE_COLUMNS, QUESTION_COLUMNS
from himtok_plugin.evaluation.ground_truth import count_in_questions
from himtok_plugin.mask_text import MASK_PLACEHOLDER
from himtok_plugin.swift_integration.samples.dataset_files import (
    check_not_empty,
    explain_first_row,
    make_readable,
    name_unreadable_row,
)
from himtok_plugin.swift_integration.samples.failed_rows import (
    keeps_failed_rows,
    pack_any_row,
    preprocess_apart,
    set_keeping,
)
from himtok_plugin.swift_integration.samples.mask_column import (
    ROW_DATASET,
    ROW_NUMBER,
    MaskColumn,
    combine_question_and_answer_masks,
    pack_mask_column,
)
from himtok_plugin.swift_integration.samples.unpickling import reduce_with_plugins

from .replacing import add, around

logger = get_logger()


def _has_masks(columns) -> bool:
    return any(name in columns for name in ("masks", "mask", CODES))


def _number_row(row: dict[str, Any], index: int, dataset: str | None) -> dict[str, Any]:
    return {**row, ROW_NUMBER: index + 1, ROW_DATASET: dataset}


def _name_dataset(row: dict[str, Any], dataset: str) -> dict[str, Any]:
    return {**row, "dataset": dataset}


def number_rows() -> None:
    """What: rows with masks have columns for their number and their dataset.
    Why: errors and results name rows, and ms-swift passes neither to preprocessors.
    Goes when: ms-swift numbers rows itself.
    Upstream: modelscope/ms-swift#4693 (wants to trace results to rows).
    """
    from datasets import Features, IterableDataset, Value
    from swift.dataset import RowPreprocessor
    from swift.dataset.loader import DatasetLoader

    loading: list[str] = []  # name of the dataset that is being loaded, at most one

    @contextmanager
    def set_dataset_name(name: str) -> Iterator[None]:
        loading.append(name)
        try:
            yield
        finally:
            loading.pop()

    @around(DatasetLoader, "_load_dataset_path")
    def load_dataset_path(original, self, dataset_path, *args, **kwargs):
        with set_dataset_name(str(dataset_path)):
            return original(self, dataset_path, *args, **kwargs)

    @around(DatasetLoader, "_load_repo_dataset")
    def load_repo_dataset(original, self, dataset_id, subset, *args, **kwargs):
        with set_dataset_name(f"{dataset_id}:{subset.subset}"):  # `prepare_dataset` adds the split
            return original(self, dataset_id, subset, *args, **kwargs)

    def get_dataset_name(dataset) -> str | None:
        name, split = loading[-1] if loading else None, getattr(dataset, "split", None)
        return name if name is None or split is None or str(split) == "train" else f"{name}:{split}"

    @around(RowPreprocessor, "prepare_dataset")
    def prepare_dataset(original, self, dataset):
        dataset = original(self, dataset)
        features = self.get_features_dataset(dataset).features
        if not (set_keeping(self) or _has_masks(features)) or ROW_NUMBER in features:
            return dataset
        name = get_dataset_name(dataset)
        if isinstance(dataset, IterableDataset):
            # In streaming, ms-swift renames the columns of `features` later, so these have to be among them.
            numbered = Features({**features, ROW_NUMBER: Value("int64"), ROW_DATASET: Value("string")})

            number = partial(_number_row, dataset=name)
            return dataset.map(number, with_indices=True, features=numbered)
        dataset = dataset.add_column(ROW_NUMBER, list(range(1, len(dataset) + 1)))
        if name is not None:
            dataset = dataset.add_column(ROW_DATASET, [name] * len(dataset))
        # `datasets` types a column of mixed values as JSON, and would parse our string under the same name as JSON too.
        # ms-swift uses this prefix for the same purpose.
        return dataset.rename_column("masks", "__@masks") if "masks" in features else dataset


def check_dataset_files() -> None:
    """What: a dataset without rows is refused by its name, row files with byte order marks are read, and a row that
    `datasets` cannot read is named.
    Why: training on an empty file ends in a StopIteration, and errors of `datasets` name neither file nor row.
    Goes when: ms-swift checks its datasets.
    Upstream: none known (looked 2026-11-29).
    """
    from modelscope.hub.utils.utils import get_cache_dir
    from swift.dataset.loader import DatasetLoader

    @around(DatasetLoader, "_load_dataset_path")
    def load_dataset_path(original, self, dataset_path, *args, **kwargs):
        path = str(dataset_path)
        readable = make_readable(path, get_cache_dir())
        try:
            return check_not_empty(partial(original, self, readable, *args, **kwargs), path)
        except Exception:
            name_unreadable_row(path)
            raise

    @around(DatasetLoader, "_load_repo_dataset")
    def load_repo_dataset(original, self, dataset_id, *args, **kwargs):
        return check_not_empty(partial(original, self, dataset_id, *args, **kwargs), dataset_id)


def name_unusable_datasets() -> None:
    """What: training on rows of which none can be encoded ends with the names of the datasets and the first error.
    Why: ms-swift advises another `max_length` whatever the reason is, or ends in a StopIteration.
    Goes when: ms-swift says why its first sample cannot be encoded.
    Upstream: none known (looked 2026-11-29).
    """
    from swift.pipelines.train.sft import SwiftSft

    @around(SwiftSft, "_show_dataset")
    def show_dataset(original, self, train_dataset, val_dataset):
        reason = "see the warnings above"
        try:
            if train_dataset is not None:  # ms-swift's value for a dataset without rows
                return original(self, train_dataset, val_dataset)
        except StopIteration:
            pass
        except ValueError as error:
            if not str(error).startswith("Failed to retrieve the dataset"):
                raise
            reason = explain_first_row(train_dataset) or reason
        names = ", ".join(self.args.dataset)
        raise ValueError(f"dataset: got {names} without a row that can be encoded, expected at least one: {reason}")


def keep_mask_columns() -> None:
    """What: before ms-swift's preprocessing, `pack_mask_column` checks and packs the masks of every row; they are kept.
    Why: `standard_keys` decides which columns ms-swift keeps, but no hook passes the raw rows of any dataset to a
    plugin.
    Goes when: a plugin can register a preprocessor that runs before ms-swift's own.
    Upstream: modelscope/ms-swift#4923 and #9200 (columns that ms-swift removes).
    """
    from swift.dataset import AutoPreprocessor, MessagesPreprocessor, RowPreprocessor

    if "masks" not in RowPreprocessor.standard_keys:
        RowPreprocessor.standard_keys.append("masks")
    # ms-swift names its caches after the input only: without this it would load rows that were cached without masks.
    RowPreprocessor.cache_format_version += "_himtok3"

    @around(RowPreprocessor, "batched_preprocess")
    def batched_preprocess(original, self, batched_row, **kwargs):
        batched_row = dict(batched_row)
        self._remove_prefix_keys(batched_row, "__@")
        if keeps_failed_rows(self):
            packed = [pack_any_row(row, kwargs["strict"]) for row in self.batched_to_rows(batched_row)]
            run = partial(original, self, **{**kwargs, "strict": True})
            if kwargs["strict"]:
                return run(self.rows_to_batched(packed))
            own = type(self).__module__ == RowPreprocessor.__module__
            return self.rows_to_batched(preprocess_apart(run, packed, filters=not own))
        if _has_masks(batched_row):
            rows = []
            for row in self.batched_to_rows(batched_row):
                try:
                    rows.append(pack_mask_column(row))
                except ValueError as error:
                    if kwargs.get("strict"):
                        raise
                    logger.warning(f"{error}: the row is skipped")
            batched_row = self.rows_to_batched(rows)
            if not rows:
                return {"messages": []}
        return original(self, batched_row, **kwargs)

    @around(AutoPreprocessor, "_get_preprocessor")
    def get_preprocessor(original, self, dataset):
        # Rows that have only masks lack the columns by which ms-swift chooses.
        features = dataset.features
        if _has_masks(features) and not any(name in features for name in (*MESSAGE_COLUMNS, *QUESTION_COLUMNS)):
            return MessagesPreprocessor(**self.kwargs)
        return original(self, dataset)


def pickle_streamed_datasets() -> None:
    """What: streamed datasets can be sent to spawned data-loader workers, which import external plugins first.
    Why: in streaming, the workers preprocess rows. ms-swift adds the dataset's name by a lambda, which cannot be
    pickled, and imports plugins into a worker after it has unpickled a bound `batched_preprocess`: the worker would not
    call the replacement above.
    Goes when: ms-swift adds the name by a function and imports plugins before a worker unpickles its dataset.
    Upstream: modelscope/ms-swift#10126 (open pull request that imports plugins when a worker unpickles their classes).
    """
    from datasets import IterableDataset
    from swift.dataset import RowPreprocessor, loader

    @around(loader, "_inject_dataset_routing_tag")
    def inject_dataset_routing_tag(original, dataset, ds_name):
        if isinstance(dataset, IterableDataset):
            return dataset.map(partial(_name_dataset, dataset=ds_name))
        return original(dataset, ds_name)

    @add(RowPreprocessor, "__reduce_ex__")
    def reduce_ex(self, protocol):
        return reduce_with_plugins(self)


def pair_masks_for_kto() -> None:
    """What: in KTO, the other row's answer that a row is compared with has its masks, and can be the same text.
    Why: ms-swift takes only the text of the other answer, refuses it if it equals the row's own, as answers with
    `<mask>` often do, and removes the mask columns.
    Goes when: ms-swift pairs whole rows.
    Upstream: modelscope/ms-swift#4535 (the pairing refuses equal answers).
    """
    from swift.pipelines.train.kto import KTOPreprocessor

    @around(KTOPreprocessor, "batched_preprocess")
    def batched_preprocess(original, self, batched_row, **kwargs):
        batched_row = dict(batched_row)
        self._remove_prefix_keys(batched_row, "__@")
        for name in (ROW_NUMBER, ROW_DATASET):  # those of the pairs; each row's own are in its packed masks
            batched_row.pop(name, None)
        paired = original(self, batched_row, **kwargs)
        if "masks" in paired:
            answers = paired.pop("rejected_response")
            paired["rejected_messages"] = [
                [*messages[:-1], {"role": "assistant", "content": answer}]
                for messages, answer in zip(paired["messages"], answers, strict=True)
            ]
            for name in (
                "images",
                "videos",
                "audios",
                "tools",
                "objects",
            ):  # ms-swift copies these for a `rejected_response` only
                if name in paired:
                    paired[f"rejected_{name}"] = paired[name]
            columns = [MaskColumn.parse([] if masks is None else masks) for masks in paired["masks"]]
            given = [count_in_questions(messages, MASK_PLACEHOLDER) for messages in paired["messages"]]
            paired["rejected_masks"] = [
                combine_question_and_answer_masks(columns[i], given[i], columns[i - 1], given[i - 1]).to_json()
                for i in range(len(columns))
            ]
        return paired
