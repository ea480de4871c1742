"""What benchmarks have in common: dataset rows become evalscope's samples, judged answers its scores and our report.

Contract: a subclass of `RowBenchmark` says what of a row is the truth, how an answer is judged, and how result rows are
scored. Does not know kinds of answers.
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

from himtok_plugin.data.samples import as_list, find_file, first_image_size, row_masks, without_nulls
from himtok_plugin.evaluation.ground_truth import count_in_questions
from himtok_plugin.evaluation.protocols import find_protocol
from himtok_plugin.evaluation.report import ScoreReport
from himtok_plugin.evaluation.results import read_results
from himtok_plugin.mask_text import IMAGE_PLACEHOLDER, MASK_PLACEHOLDER
from himtok_plugin.metrics.boxes import BOX_LEVELS
from himtok_plugin.metrics.segmentation import PRECISION_LEVELS
from himtok_plugin.prediction.predictor import PredictedMask
from himtok_plugin.swift_integration.answering.run_card import make_run_card
from himtok_plugin.swift_integration.options.current_arguments import get_current_arguments

from .benchmark_masks import answer_of, logprobs_of, mask_predictor, mask_tokenizer, source, with_codes

FOLDER = "himtok"  # in the run's folder: reports and result files
SHARES = {"N-acc": "n_acc", "T-acc": "t_acc"}


class RowBenchmark(VisionLanguageAdapter):
    """A benchmark whose samples are dataset rows: all but the last answer is asked, the last answer is the truth."""

    decodes_masks = False  # whether scores depend on how masks are decoded

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_overall_metric = False  # subsets are splits, whose mean means nothing
        self._reports: dict[str, ScoreReport] = {}
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._probabilities_came = False  # with any answer, so that its masks have scores

    # ----- rows to samples

    def load(self) -> tuple[DatasetDict, None]:
        """Samples of every subset, at most `--eval_limit` each."""
        self.check_options()
        datasets = {}
        for subset, path in self._files().items():
            samples = []
            for number, row in read_results(path):
                if isinstance(self.limit, int) and len(samples) >= self.limit > 0:
                    break
                try:
                    samples.append(self._sample(row, number))
                except ValueError as error:
                    raise ValueError(f"{path}: row {number}: {error}") from error
            if not samples:
                raise ValueError(f"{path}: holds no rows, expected those of `himtok prepare`")
            if isinstance(self.limit, float):  # a share of them
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
            raise ValueError("messages: got no answer at the end, expected the true one")
        asked, answer = messages[:-1], messages[-1]["content"]
        images = [absolute(image) for image in as_list(row.get("images") or [], "images")]
        size = first_image_size(row)
        if size is None:
            raise ValueError(f"images: got {images!r:.200}, expected an image file")
        masks = [absolute(mask) for mask in row_masks(row) or []]
        given = count_in_questions(messages, MASK_PLACEHOLDER)
        texts = with_codes([message["content"] for message in asked], masks[:given], size)
        remaining = iter(images)
        turns = [
            (ChatMessageUser if message["role"] == "user" else ChatMessageAssistant)(
                content=list(_contents(text, remaining)) if message["role"] == "user" else text
            )
            for message, text in zip(asked, texts, strict=True)
        ]
        true: dict[str, Any] = {"row": number, "size": list(size), "messages": asked, "images": images}
        for key in ("category", "referent", "expressions", "source"):
            if row.get(key) is not None:
                true[key] = row[key]
        if row.get("ignore") is not None:
            true["ignore"] = [absolute(without_nulls(mask)) for mask in as_list(row["ignore"], "ignore")]
        true.update(self.truth(row, answer, size))
        return Sample(input=turns, target=answer, metadata=true)

    def truth(self, row: dict[str, Any], answer: str, size: tuple[int, int]) -> dict[str, Any]:
        """What else of a row is needed to score its answer; ValueError where that is missing."""
        raise NotImplementedError

    def check_options(self) -> None:
        """ValueError for an option that would have no effect here, though its name would stand in the report."""
        args = get_current_arguments()
        if not self.decodes_masks:
            return
        if args.refiner != "none":
            raise ValueError(
                f"refiner: got {args.refiner!r}, expected 'none': {self.name} decodes masks from the text of answers, "
                "and nothing refines them"
            )
        if args.min_score and not self._asks_for_logprobs:
            raise ValueError(
                f"min_score: got {args.min_score}, expected 0 without logprobs in --eval_generation_config: masks have "
                "no score then"
            )

    @property
    def _asks_for_logprobs(self) -> bool:
        return bool((self._task_config.generation_config.model_dump() or {}).get("logprobs"))

    # ----- answers to scores

    def match_score(self, original_prediction, filtered_prediction, reference, task_state) -> Score:
        score = Score(prediction=original_prediction, extracted_prediction=filtered_prediction)
        found, values = self.judge(original_prediction, task_state.metadata, logprobs_of(task_state))
        score.metadata = found
        score.value = {name: float(value) for name, value in values.items()}
        return score

    def masks_of(self, text: str, size: tuple[int, int], logprobs) -> list[PredictedMask]:
        """Masks of an answer, (h, w) each."""
        answer = answer_of(text, size, logprobs)
        self._probabilities_came |= answer.probabilities is not None
        return mask_predictor()([answer])[0]

    def judge(self, text: str, true: dict[str, Any], logprobs) -> tuple[dict[str, Any], dict[str, float]]:
        """What an answer says, as columns of a result row, and how good that is."""
        raise NotImplementedError

    def scores_of(self, rows: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, float | None]]:
        """Scores of result rows, and those of single classes."""
        raise NotImplementedError

    def aggregate_subset(self, subset, sample_scores) -> list[AggScore]:
        rows, answered = [], set()
        for each in sorted(sample_scores, key=lambda each: each.sample_metadata["row"]):
            answered.add(each.sample_metadata["row"])
            rows.append({**each.sample_metadata, "response": each.score.prediction, **(each.score.metadata or {})})
        failures = []
        for sample in self.test_dataset[subset] if self.test_dataset is not None else ():
            if sample.metadata["row"] not in answered:
                failures.append(f"{subset}: row {sample.metadata['row']}: no prediction")
                rows.append(
                    {**sample.metadata, "response": "", "failed": True, **self.judge("", sample.metadata, None)[0]}
                )
        scores, per_class = self.scores_of(rows)
        scores["failures"] = len(failures)
        self._rows[subset] = rows
        name = f"{self.name}/{subset}"
        self._reports[subset] = ScoreReport(name, scores, self.protocol, self._card(), failures, per_class)
        return [
            AggScore(metric_name=metric, aggregation=aggregation, dimensions=axes, score=value, num=len(rows))
            for name, value in scores.items()
            if value is not None and (identity := _identity(name)) is not None
            for metric, aggregation, axes in [identity]
        ]

    aggregate_empty_scores = True  # a server that never answered is a result, too

    @property
    def protocol(self):
        return find_protocol(self.extra_params.get("protocol", "plain"))

    def _card(self):
        args = get_current_arguments()
        card = make_run_card(args, source(), mask_tokenizer().config.num_mask_tokens)
        soft = self._probabilities_came and args.mask_decoding == "soft"
        card.mask_decoding = "soft, of the log-probabilities that came with answers" if soft else "hard"
        card.refiner = "none"
        if not self._probabilities_came:
            card.min_score = 0.0  # of masks without a score, all are kept
        if not self.decodes_masks:
            card.mask_decoding = card.threshold = card.min_score = None
        card.further["server"] = self._task_config.api_url
        card.further["limit"] = self.limit
        return card

    def _on_generate_report_end(self, report, output_dir: str, **kwargs) -> None:
        for subset, own in self._reports.items():
            # Not among evalscope's own, all of which it reads again.
            stem = Path(self._task_config.work_dir) / FOLDER / f"{self.name}_{subset}"
            own.save(stem)
            with open(f"{stem}.jsonl", "w", encoding="utf-8") as file:
                for row in self._rows[subset]:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            own.run.save(f"{stem}.jsonl")
            print(own.markdown())


def _identity(name: str) -> tuple[str, str, dict[str, Any]] | None:
    """A score as evalscope names it: metric, aggregation, axes; None for counts."""
    if name in ("cIoU", "gIoU", "mIoU"):
        return "iou", "official" if name == "cIoU" else "mean", {"kind": name}
    if name in SHARES:
        return "accuracy", "rate", {"kind": SHARES[name]}
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


def _contents(text: str, images: Iterator[str]) -> Iterator[ContentText | ContentImage]:
    for i, piece in enumerate(text.split(IMAGE_PLACEHOLDER)):
        if i:
            image = next(images, None)
            if image is None:
                raise ValueError("images: got fewer than there are <image> in the messages")
            yield ContentImage(image=image)
        if piece.strip():
            yield ContentText(text=piece)


def absolute(source: Any) -> Any:
    """A path as it can be read from any folder; other masks and images as they are."""
    if isinstance(source, dict) and isinstance(source.get("path"), str):
        source = source["path"]
    return os.path.abspath(find_file(source)) if isinstance(source, str) else source
