"""Rows of data sets; what is made of them is dataset.py's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from swift.utils import get_logger

from himtok_plugin.data.samples import CODES, MESSAGE_COLUMNS, QUESTION_COLUMNS
from himtok_plugin.evaluation.ground_truth import count_in_questions
from himtok_plugin.mask_text import MASK_PLACEHOLDER
from himtok_plugin.swift_integration.samples.mask_column import (
    ROW_DATASET,
    ROW_NUMBER,
    MaskColumn,
    combine_question_and_answer_masks,
    pack_mask_column,
)

from .replacing import around

logger = get_logger()


def _has_masks(columns) -> bool:
    return any(name in columns for name in ("masks", "mask", CODES))


def number_rows() -> None:
    """What: rows with masks know their number and the dataset that they are of.
    Why: errors and results name rows, and preprocessors are told neither.
    Goes when: ms-swift numbers rows itself.
    """
    from datasets import Features, IterableDataset, Value
    from swift.dataset import RowPreprocessor
    from swift.dataset.loader import DatasetLoader

    loading: list[str] = []  # the dataset that is being loaded: preprocessors are not told

    @contextmanager
    def naming(name: str) -> Iterator[None]:
        loading.append(name)
        try:
            yield
        finally:
            loading.pop()

    @around(DatasetLoader, "_load_dataset_path")
    def load_dataset_path(original, self, dataset_path, *args, **kwargs):
        with naming(str(dataset_path)):
            return original(self, dataset_path, *args, **kwargs)

    @around(DatasetLoader, "_load_repo_dataset")
    def load_repo_dataset(original, self, dataset_id, subset, *args, **kwargs):
        with naming(f"{dataset_id}:{subset.subset}"):  # whose splits, `prepare_dataset` can tell apart
            return original(self, dataset_id, subset, *args, **kwargs)

    def dataset_name(dataset) -> str | None:
        name, split = loading[-1] if loading else None, getattr(dataset, "split", None)
        return name if name is None or split is None or str(split) == "train" else f"{name}:{split}"

    @around(RowPreprocessor, "prepare_dataset")
    def prepare_dataset(original, self, dataset):
        dataset = original(self, dataset)
        features = self.get_features_dataset(dataset).features
        if not _has_masks(features) or ROW_NUMBER in features:
            return dataset
        name = dataset_name(dataset)
        if isinstance(dataset, IterableDataset):
            # Streaming renames the known columns afterwards, so these have to look like the dataset's own.
            numbered = Features({**features, ROW_NUMBER: Value("int64"), ROW_DATASET: Value("string")})

            def number(row, index):
                return {**row, ROW_NUMBER: index + 1, ROW_DATASET: name}

            return dataset.map(number, with_indices=True, features=numbered)
        dataset = dataset.add_column(ROW_NUMBER, list(range(1, len(dataset) + 1)))
        if name is not None:
            dataset = dataset.add_column(ROW_DATASET, [name] * len(dataset))
        # A column of mixed kinds is one of JSON, as which `datasets` would read our string of the same name. The prefix
        # is ms-swift's own, for the same purpose.
        return dataset.rename_column("masks", "__@masks") if "masks" in features else dataset


def keep_mask_columns() -> None:
    """What: rows pass `pack_mask_column` before ms-swift's preprocessing, and `masks` survives it.
    Why: `standard_keys` decides which columns survive, but nothing lets a plugin see a raw row of any dataset.
    Goes when: preprocessors can be registered to run before the automatic one.
    """
    from swift.dataset import AutoPreprocessor, MessagesPreprocessor, RowPreprocessor

    if "masks" not in RowPreprocessor.standard_keys:
        RowPreprocessor.standard_keys.append("masks")
    # ms-swift's caches are named after the input alone: rows cached without masks must not be taken for ours.
    RowPreprocessor.cache_format_version += "_himtok3"

    @around(RowPreprocessor, "batched_preprocess")
    def batched_preprocess(original, self, batched_row, **kwargs):
        batched_row = dict(batched_row)
        self._remove_prefix_keys(batched_row, "__@")
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
        # Rows that hold masks only have no column that would tell.
        features = dataset.features
        if _has_masks(features) and not any(name in features for name in (*MESSAGE_COLUMNS, *QUESTION_COLUMNS)):
            return MessagesPreprocessor(**self.kwargs)
        return original(self, dataset)


def pair_answers_with_their_masks() -> None:
    """What: in KTO, the answer of another row, which a row's is compared with, comes with its masks, and may have the
    same words.
    Why: ms-swift takes the answer's text alone, refuses one like the row's own, as answers with `<mask>` often are, and
    its preprocessor for that passes over our columns.
    Goes when: it pairs whole rows, in a preprocessor like the others.
    """
    from swift.pipelines.train.kto import KTOPreprocessor

    @around(KTOPreprocessor, "batched_preprocess")
    def batched_preprocess(original, self, batched_row, **kwargs):
        batched_row = dict(batched_row)
        self._remove_prefix_keys(batched_row, "__@")
        for name in (ROW_NUMBER, ROW_DATASET):  # of the shuffled rows: theirs are packed with their masks
            batched_row.pop(name, None)
        paired = original(self, batched_row, **kwargs)
        if "masks" in paired:
            answers = paired.pop("rejected_response")
            paired["rejected_messages"] = [
                [*messages[:-1], {"role": "assistant", "content": answer}]
                for messages, answer in zip(paired["messages"], answers, strict=True)
            ]
            for name in ("images", "videos", "audios", "tools", "objects"):  # which whole messages do not inherit
                if name in paired:
                    paired[f"rejected_{name}"] = paired[name]
            columns = [MaskColumn.parse([] if masks is None else masks) for masks in paired["masks"]]
            given = [count_in_questions(messages, MASK_PLACEHOLDER) for messages in paired["messages"]]
            paired["rejected_masks"] = [
                combine_question_and_answer_masks(columns[i], given[i], columns[i - 1], given[i - 1]).to_json()
                for i in range(len(columns))
            ]
        return paired
