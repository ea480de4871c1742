"""The base class of the benchmarks: dataset rows become evalscope's samples, and answers become scores and a report.

Contract: a subclass of `RowBenchmark` defines the ground truth of a row, how an answer is judged, and how results are
scored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evalscope.api.benchmark import VisionLanguageAdapter
from evalscope.api.dataset import DatasetDict, MemoryDataset, Sample
from evalscope.api.dataset.dataset import resolve_dataset_limit
from evalscope.api.messages import ChatMessageAssistant, ChatMessageUser, ContentImage, ContentText
from evalscope.api.metric import AggScore, Score

from himtok_plugin.data.samples import as_list, drop_nulls, find_file, first_image_size, row_masks
from himtok_plugin.evaluation.ground_truth import count_in_questions
from himtok_plugin.evaluation.protocols import Protocol, find_protocol
from himtok_plugin.evaluation.provenance import RunCard
from himtok_plugin.evaluation.report import ScoreReport
from himtok_plugin.evaluation.results import ERROR, read_results
from himtok_plugin.mask_text import IMAGE_PLACEHOLDER, MASK_PLACEHOLDER
from himtok_plugin.metrics.boxes import BOX_LEVELS
from himtok_plugin.metrics.segmentation import PRECISION_LEVELS
from himtok_plugin.prediction.predictor import PredictedMask
from himtok_plugin.swift_integration.answering.run_card import make_run_card
from himtok_plugin.swift_integration.options.current_arguments import get_current_arguments

from .benchmark_masks import (
    encode_questions,
    find_evaluated_mask_tokenizer,
    get_logprobs,
    load_evaluated_mask_tokenizer,
    make_answer,
    make_mask_predictor,
)

FOLDER = "himtok"  # for reports and result files, in the run's folder
ACCURACIES = {"N-acc": "n_acc", "T-acc": "t_acc"}


class RowBenchmark(VisionLanguageAdapter):
    """A benchmark of dataset rows: the last answer is the ground truth, the messages before it are the question."""

    @property
    def decodes_masks(self) -> bool:
        """Whether scores depend on how masks are decoded."""
        return False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_overall_metric = False  # subsets are splits; a mean over them is not reported in papers
        self._reports: dict[str, ScoreReport] = {}
        self._results: dict[str, list[dict[str, Any]]] = {}
        self._has_logprobs = False  # of any answer, so that its masks have scores

    # ----- rows to samples

    def load(self) -> tuple[DatasetDict, None]:
        """Samples of every subset, at most `--eval_limit` each."""
        self.check_options()
        datasets = {}
        for subset, path in self._files().items():
            samples: list[Sample] = []
            for number, row in read_results(path):
                if isinstance(self.limit, int) and len(samples) >= self.limit > 0:
                    break
                try:
                    samples.append(self._sample(row, number))
                except ValueError as error:
                    raise ValueError(f"{path}: row {number}: {error}") from error
            if not samples:
                raise ValueError(f"{path}: holds no rows, expected those of `himtok prepare`")
            if isinstance(self.limit, float):  # a fraction
                samples = samples[: resolve_dataset_limit(self.limit, len(samples))]
            datasets[subset] = MemoryDataset(samples, name=subset, location=os.fspath(path))
            datasets[subset].reindex()
        self.subset_list = list(datasets)
        return DatasetDict(datasets), None

    def _files(self) -> dict[str, Path]:
        path = Path(self.dataset_id)
        if path.is_file():
            return {path.stem: path}
        files = {file.stem: file for file in sorted(path.glob("*.jsonl"))}
        wanted = self.subset_list if self.subset_list != ["default"] else list(files)
        if not files or set(wanted) - set(files):
            raise ValueError(
                f"--eval_dataset_args: local_path of {self.name}: got {self.dataset_id!r} with {sorted(files)}, "
                f"expected rows.jsonl or a folder of such files, one of each of {wanted or 'its subsets'}"
            )
        return {subset: files[subset] for subset in wanted}

    def _sample(self, row: dict[str, Any], number: int) -> Sample:
        messages = row.get("messages")
        if not messages or messages[-1].get("role") != "assistant":
            raise ValueError("messages: got no answer at the end, expected the correct one")
        questions, answer = messages[:-1], messages[-1]["content"]
        images = [make_absolute(image) for image in as_list(row.get("images") or [], "images")]
        size = first_image_size(row)
        if size is None:
            raise ValueError(f"images: got {images!r:.200}, expected an image file")
        masks = [make_absolute(mask) for mask in row_masks(row) or []]
        given = count_in_questions(messages, MASK_PLACEHOLDER)
        texts = encode_questions([message["content"] for message in questions], masks[:given], size)
        remaining_images = iter(images)
        turns = [
            (ChatMessageUser if message["role"] == "user" else ChatMessageAssistant)(
                content=list(_split_contents(text, remaining_images)) if message["role"] == "user" else text
            )
            for message, text in zip(questions, texts, strict=True)
        ]
        metadata: dict[str, Any] = {"row": number, "size": list(size), "messages": questions, "images": images}
        for key in ("category", "referent", "expressions", "source"):
            if row.get(key) is not None:
                metadata[key] = row[key]
        if row.get("ignore") is not None:
            metadata["ignore"] = [make_absolute(drop_nulls(mask)) for mask in as_list(row["ignore"], "ignore")]
        metadata.update(self.get_ground_truth(row, answer, size))
        return Sample(input=turns, target=answer, metadata=metadata)

    def get_ground_truth(self, row: dict[str, Any], answer: str, size: tuple[int, int]) -> dict[str, Any]:
        """Return what is needed to score an answer to this row.

        Args:
            row: the dataset row.
            answer: its last answer.
            size: (h, w) of its first image.
        Raises:
            ValueError: the row lacks it.
        """
        raise NotImplementedError

    def check_options(self) -> None:
        """Raise ValueError for an option that has no effect here but would be in the report."""
        args: Any = get_current_arguments()
        if not self.decodes_masks:
            return
        if args.refiner != "none":
            raise ValueError(
                f"refiner: got {args.refiner!r}, expected 'none': {self.name} decodes masks from the text of answers "
                "and does not refine them"
            )
        if args.min_score and not self._asks_for_logprobs:
            raise ValueError(
                f"min_score: got {args.min_score}, expected 0, or logprobs in --eval_generation_config: without them "
                "masks have no score"
            )

    @property
    def _asks_for_logprobs(self) -> bool:
        return bool((self._task_config.generation_config.model_dump() or {}).get("logprobs"))

    # ----- answers to scores

    def match_score(self, original_prediction, filtered_prediction, reference, task_state) -> Score:
        score = Score(prediction=original_prediction, extracted_prediction=filtered_prediction)
        columns, values = self.judge(original_prediction, task_state.metadata, get_logprobs(task_state))
        score.metadata = columns
        score.value = {name: float(value) for name, value in values.items()}
        return score

    def predict_masks(self, text: str, size: tuple[int, int], logprobs: Any) -> list[PredictedMask]:
        """Predict the masks of an answer, (h, w) each."""
        answer = make_answer(text, size, logprobs)
        self._has_logprobs |= answer.probabilities is not None
        return make_mask_predictor()([answer])[0]

    def judge(self, text: str, metadata: dict[str, Any], logprobs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what an answer predicts, as columns of a result, and its scores.

        Args:
            text: the answer.
            metadata: of the sample, with the ground truth.
            logprobs: see `get_logprobs`.
        """
        raise NotImplementedError

    def compute_scores(self, results: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the scores of results, and those of single classes."""
        raise NotImplementedError

    def aggregate_subset(self, subset, sample_scores) -> list[AggScore]:
        results, answered = [], set()
        for each in sorted(sample_scores, key=lambda each: each.sample_metadata["row"]):
            answered.add(each.sample_metadata["row"])
            results.append({**each.sample_metadata, "response": each.score.prediction, **(each.score.metadata or {})})
        failures = []
        for sample in self.test_dataset[subset] if self.test_dataset is not None else ():
            if sample.metadata["row"] not in answered:
                failures.append(f"{subset}: row {sample.metadata['row']}: no prediction")
                results.append(
                    {
                        **sample.metadata,
                        **{"response": "", "failed": True, ERROR: "no prediction"},
                        **self.judge("", sample.metadata, None)[0],
                    }
                )
        scores, per_class = self.compute_scores(results)
        scores["failures"] = len(failures)
        self._results[subset] = results
        name = f"{self.name}/{subset}"
        self._reports[subset] = ScoreReport(name, scores, self.protocol, self._make_run_card(), failures, per_class)
        return [
            AggScore(metric_name=metric, aggregation=aggregation, dimensions=axes, score=value, num=len(results))
            for name, value in scores.items()
            if value is not None and (identity := _get_metric_identity(name)) is not None
            for metric, aggregation, axes in [identity]
        ]

    aggregate_empty_scores = True  # a server that never answers has scores too

    @property
    def protocol(self) -> Protocol:
        """The evaluation protocol, from `extra_params`."""
        return find_protocol(self.extra_params.get("protocol", "plain"))

    def _make_run_card(self) -> RunCard:
        args: Any = get_current_arguments()
        num_mask_tokens = load_evaluated_mask_tokenizer().config.num_mask_tokens
        card = make_run_card(args, find_evaluated_mask_tokenizer(), num_mask_tokens)
        soft = self._has_logprobs and args.mask_decoding == "soft"
        card.mask_decoding = "soft, of the log-probabilities that came with answers" if soft else "hard"
        card.refiner = "none"
        if not self._has_logprobs:
            card.min_score = 0.0  # masks without a score are all kept
        if not self.decodes_masks:
            card.mask_decoding = card.threshold = card.min_score = None
        card.further["server"] = self._task_config.api_url
        card.further["limit"] = self.limit
        return card

    def _on_generate_report_end(self, report, output_dir: str, **kwargs) -> None:
        for subset, score_report in self._reports.items():
            # Not in the folder of evalscope's reports, because it reads all files there.
            stem = Path(self._task_config.work_dir) / FOLDER / f"{self.name}_{subset}"
            score_report.save(stem)
            with open(f"{stem}.jsonl", "w", encoding="utf-8") as file:
                for result in self._results[subset]:
                    file.write(json.dumps(result, ensure_ascii=False) + "\n")
            assert score_report.run is not None
            score_report.run.save(f"{stem}.jsonl")
            print(score_report.markdown())


def _get_metric_identity(name: str) -> tuple[str, str, dict[str, Any]] | None:
    """Return evalscope's name of a score: metric, aggregation and dimensions; None for counts."""
    if name in ("cIoU", "gIoU", "mIoU"):
        return "iou", "official" if name == "cIoU" else "mean", {"kind": name}
    if name in ACCURACIES:
        return "accuracy", "rate", {"kind": ACCURACIES[name]}
    if name == "accuracy":
        return "accuracy", "mean", {}
    if name == "box_IoU":
        return "iou", "mean", {"kind": "box"}
    for begin, metric, axis, levels in (
        ("P@", "precision", "mask_iou", PRECISION_LEVELS),
        ("box_acc@", "accuracy", "box_iou", BOX_LEVELS),
    ):
        if name.startswith(begin) and float(name.removeprefix(begin)) in levels:
            return metric, "rate", {axis: float(name.removeprefix(begin))}
    return None


def _split_contents(text: str, images: Iterator[str]) -> Iterator[ContentText | ContentImage]:
    for i, piece in enumerate(text.split(IMAGE_PLACEHOLDER)):
        if i:
            image = next(images, None)
            if image is None:
                raise ValueError("images: got fewer than the messages have <image>, expected as many")
            yield ContentImage(image=image)
        if piece.strip():
            yield ContentText(text=piece)


def make_absolute(source: Any) -> Any:
    """Make the path of a mask or image absolute; other sources are returned unchanged."""
    if isinstance(source, dict) and isinstance(source.get("path"), str):
        source = source["path"]
    return os.path.abspath(find_file(source)) if isinstance(source, str) else source
