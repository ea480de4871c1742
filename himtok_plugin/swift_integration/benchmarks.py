"""Benchmarks of `swift eval --plugin himtok`: rows of this project's format, asked of any OpenAI-compatible server.

Contract: `register_benchmarks` makes `refcoco_seg`, `grefcoco_seg`, `reasonseg`, `rec` and `mask_perception` known to
evalscope. Their data are rows.jsonl as `himtok prepare` writes them, named in `--eval_dataset_args` as `local_path`: a
file, or a folder of which every *.jsonl is a subset. Masks are decoded here, from the text of the answer (softly where
`logprobs` come with it), so that every server will do; options that mean nothing then are refused. Beside evalscope's
own report there is one with protocol and run, and a result file of masks or boxes that `himtok eval` reads: its scores
are these, for they are computed from its rows. What could not be predicted is in both, as a missing answer. Does not
know metrics.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evalscope.api.benchmark import BenchmarkMeta, VisionLanguageAdapter
from evalscope.api.dataset import DatasetDict, MemoryDataset, Sample
from evalscope.api.dataset.dataset import resolve_dataset_limit
from evalscope.api.messages import ChatMessageAssistant, ChatMessageUser, ContentImage, ContentText
from evalscope.api.metric import AggScore, Score
from evalscope.api.metric.semantics import MetricSelector
from evalscope.api.registry import BENCHMARK_REGISTRY, register_benchmark

from ..box_metrics import BOX_LEVELS, SCALES, BoxMetrics, box_iou, boxes_in_text
from ..choices import ChoiceMetrics, choice_letter
from ..confidence import Calibration
from ..mask_rows import as_list, find_file, first_image_size, load_squares, row_masks, without_nulls
from ..mask_text import (
    BOX_PLACEHOLDER,
    IMAGE_PLACEHOLDER,
    MASK_PLACEHOLDER,
    OBJECT_PLACEHOLDER,
    codes_to_text,
    text_to_codes,
)
from ..masks import mask_bbox
from ..metrics import PRECISION_LEVELS
from ..prediction import Answer, MaskPredictor, PredictedMask
from ..protocols import PROTOCOLS, find_protocol
from ..report import ScoreReport
from ..row_truths import ASKS_FOR_MASKS, answer_boxes, answer_masks, count_asked
from ..scoring import RowScores, read_rows
from ..token_logprobs import code_probabilities_of_logprobs
from .arguments import current_arguments
from .boxes import RESIZED, THOUSANDTHS, boxes_of_text, norm_bbox_of
from .model import find_source, load_mask_tokenizer
from .run_card import run_card

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
            for number, row in read_rows(path):
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
        images = [_absolute(image) for image in as_list(row.get("images") or [], "images")]
        size = first_image_size(row)
        if size is None:
            raise ValueError(f"images: got {images!r:.200}, expected an image file")
        masks = [_absolute(mask) for mask in row_masks(row) or []]
        given = count_asked(messages, MASK_PLACEHOLDER)
        texts = _with_codes([message["content"] for message in asked], masks[:given], size)
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
            true["ignore"] = [_absolute(without_nulls(mask)) for mask in as_list(row["ignore"], "ignore")]
        true.update(self.truth(row, answer, size))
        return Sample(input=turns, target=answer, metadata=true)

    def truth(self, row: dict[str, Any], answer: str, size: tuple[int, int]) -> dict[str, Any]:
        """What else of a row is needed to score its answer; ValueError where that is missing."""
        raise NotImplementedError

    def check_options(self) -> None:
        """ValueError for an option that would have no effect here, though its name would stand in the report."""
        args = current_arguments()
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
        found, values = self.judge(original_prediction, task_state.metadata, _logprobs_of(task_state))
        score.metadata = found
        score.value = {name: float(value) for name, value in values.items()}
        return score

    def masks_of(self, text: str, size: tuple[int, int], logprobs) -> list[PredictedMask]:
        """Masks of an answer, (h, w) each."""
        answer = _answer(text, size, logprobs)
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
        args = current_arguments()
        card = run_card(args, _source(), mask_tokenizer().config.num_mask_tokens)
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


class MaskBenchmark(RowBenchmark):
    """Masks of an answer against the true ones."""

    decodes_masks = True

    def _sample(self, row: dict[str, Any], number: int) -> Sample:
        sample = super()._sample(row, number)
        self.protocol.check_question(sample.metadata["messages"][-1]["content"], sample.metadata.get("expressions"))
        return sample

    def truth(self, row, answer, size):
        masks = answer_masks(row_masks(row), row["messages"], row.get(ASKS_FOR_MASKS))
        if masks is None:
            raise ValueError(f"masks: got a row that asks for none ({answer!r:.80}), expected one that does")
        return {"target_masks": [_absolute(mask) for mask in masks]}

    def judge(self, text, true, logprobs):
        row = {"masks": [mask.to_dict() for mask in self.masks_of(text, tuple(true["size"]), logprobs)]}
        return row, {"iou": RowScores(self.protocol, boundary=False).add({**true, **row})}

    def scores_of(self, rows):
        scores = RowScores(self.protocol, boundary=False)
        for row in rows:
            scores.add(row, f"row {row['row']}")
        return scores.compute(), scores.classes.per_class()


class BoxBenchmark(RowBenchmark):
    """The first box of an answer, or that of its first mask, against the true one."""

    @property
    def decodes_masks(self):
        return self.extra_params["box_from"] == "mask"

    def check_options(self):
        super().check_options()
        if not self.decodes_masks and self.extra_params["box_scale"] == BY_TEMPLATE:
            _check_template(current_arguments())

    def truth(self, row, answer, size):
        boxes = answer_boxes(row.get("objects"), row["messages"], size)
        if boxes is None or len(boxes) != 1:
            raise ValueError(f"objects: got {row.get('objects')!r:.120}, expected one box [x1, y1, x2, y2]")
        return {"target_boxes": boxes}

    def judge(self, text, true, logprobs):
        size, scale = tuple(true["size"]), self.extra_params["box_scale"]
        if self.decodes_masks:
            found = [mask_bbox(mask.mask) for mask in self.masks_of(text, size, logprobs)[:1] if mask.mask.any()]
        elif scale != BY_TEMPLATE:
            found = boxes_in_text(text, size, scale)
        elif norm_bbox_of(current_arguments()) == THOUSANDTHS:
            found = boxes_in_text(text, size)
        else:
            found = boxes_of_text(text, true["images"][0], _template())
            if found is None:
                raise ValueError("box_scale: got a template that does not tell the size it gives images, " + EXPLICIT)
        found = [[float(value) for value in box] for box in found]
        return {"boxes": found}, {"iou": box_iou(found[0], true["target_boxes"][0]) if found else 0.0}

    def scores_of(self, rows):
        metrics = BoxMetrics()
        for row in rows:
            metrics.update(row["boxes"][0] if row["boxes"] else None, row["target_boxes"][0])
        return metrics.compute(), {}


class ChoiceBenchmark(RowBenchmark):
    """The letter of an answer against the true one."""

    def truth(self, row, answer, size):
        if choice_letter(answer) is None:
            raise ValueError(f"messages: got the answer {answer!r:.80}, expected one with a letter")
        return {"answer": answer}

    def judge(self, text, true, logprobs):
        letter = choice_letter(text)
        return {"choice": letter}, {"acc": float(letter == choice_letter(true["answer"]))}

    def scores_of(self, rows):
        metrics = ChoiceMetrics()
        for row in rows:
            metrics.update(row["response"], row["answer"])
        return metrics.compute(), {}


def register_benchmarks() -> None:
    """Make the benchmarks known to evalscope; idempotent."""
    for name, title, adapter, extra, primary in (
        ("refcoco_seg", "RefCOCO, RefCOCO+, RefCOCOg: masks", MaskBenchmark, _protocol("per-sentence"), CIOU),
        ("grefcoco_seg", "gRefCOCO: masks of none, one, several", MaskBenchmark, _protocol("grefcoco-50px"), CIOU),
        ("reasonseg", "ReasonSeg", MaskBenchmark, _protocol("lisa"), GIOU),
        ("rec", "Referring boxes", BoxBenchmark, {**_protocol("plain"), **BOX_PARAMETERS}, BOX),
        ("mask_perception", "Multiple choice about masks", ChoiceBenchmark, _protocol("plain"), ACCURACY),
    ):
        if BENCHMARK_REGISTRY.is_materialized(name):
            continue
        meta = BenchmarkMeta(
            name=name,
            pretty_name=title,
            dataset_id=f"himtok/{name}",
            description=f"{title}. Rows of `himtok prepare`, given as local_path.",
            metric_list=[primary.name],
            primary_metric=primary,
            extra_params=extra,
        )
        register_benchmark(meta)(adapter)


CIOU = MetricSelector(name="iou", dimensions={"kind": "cIoU"})
GIOU = MetricSelector(name="iou", dimensions={"kind": "gIoU"})
BOX = MetricSelector(name="accuracy", dimensions={"box_iou": BOX_LEVELS[0]})
ACCURACY = MetricSelector(name="accuracy")
BY_TEMPLATE = "template"
EXPLICIT = f"expected box_scale in extra_params, one of {', '.join(SCALES)}"
BOX_PARAMETERS = {
    "box_scale": {
        "type": "str",
        "description": "What the numbers of a box mean: what the model's template writes (thousandths of the image, or "
        "pixels of it as it was resized), shares of the image, thousandths of it, or its own pixels.",
        "value": BY_TEMPLATE,
        "choices": [BY_TEMPLATE, *SCALES],
    },
    "box_from": {
        "type": "str",
        "description": "Whether a box is read in the answer's text, or drawn around its first mask.",
        "value": "text",
        "choices": ["text", "mask"],
    },
}


def _protocol(default: str) -> dict[str, Any]:
    about = "Rules of the numbers: " + " ".join(f"{p.name}: {p.summary}" for p in PROTOCOLS.values())
    return {"protocol": {"type": "str", "description": about, "value": default, "choices": list(PROTOCOLS)}}


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


# ----- boxes


def _check_template(args: Any) -> None:
    """ValueError where the template's boxes cannot be read."""
    norm = norm_bbox_of(args)
    if norm is None:
        raise ValueError(f"box_scale: got no template that {args.model!r} is known by, " + EXPLICIT)
    if norm == RESIZED and getattr(args, "eval_url", None):
        raise ValueError(
            f"box_scale: got a template ({args.template}) that writes pixels of the image as {args.eval_url} resizes "
            "it, by settings that are not known here: " + EXPLICIT
        )


@cache
def _template():
    """The template of the model under evaluation, which resizes images as its server does: that is of this process."""
    return current_arguments().get_template()


# ----- masks


@cache
def _source() -> Path:
    args = current_arguments()
    return find_source(
        args.mask_tokenizer, os.fspath(getattr(args, "model_dir", None) or args.model), args.adapter_folders
    )


@cache
def mask_tokenizer():
    """The mask tokenizer that belongs to the model under evaluation, on the CPU: the GPU is the server's."""
    return load_mask_tokenizer(_source()).eval().requires_grad_(False)


@cache
def mask_predictor() -> MaskPredictor:
    args = current_arguments()
    calibration = Calibration.load(_source())
    return MaskPredictor(
        mask_tokenizer(),
        args.mask_decoding,
        args.mask_threshold,
        calibration,
        args.min_score,
        resize=args.mask_resize,
    )


def _answer(text: str, size: tuple[int, int], logprobs: Any) -> Answer:
    if not logprobs:
        return Answer(text, size)
    config = mask_tokenizer().config
    spans = text_to_codes(text, config.codebook_size, config.num_mask_tokens)
    codes, probabilities = code_probabilities_of_logprobs(logprobs, config.codebook_size)
    known = codes == [code for span in spans for code in span.codes]  # else the text was changed on its way
    return Answer(text, size, probabilities if known and codes else None)


def _logprobs_of(task_state) -> Any:
    choices = getattr(task_state.output, "choices", None)
    found = choices[0].logprobs if choices else None
    return None if found is None else found.content


def _with_codes(texts: list[str], masks: list[Any], size: tuple[int, int]) -> list[str]:
    """Questions with the codes of their masks in place of `<mask>`, which every server reads."""
    for text in texts:
        for placeholder in (BOX_PLACEHOLDER, OBJECT_PLACEHOLDER):
            if placeholder in text:
                raise ValueError(
                    f"messages: got {placeholder} in a question, expected it written out: a server does not know how "
                    "the template at hand writes it"
                )
    if not masks:
        return texts
    tokenizer = mask_tokenizer()
    squares = load_squares(dict(enumerate(masks)), tokenizer.config.image_size, size, "row")
    with torch.inference_mode():
        codes = tokenizer.encode(torch.from_numpy(squares.astype(np.float32) / 255)).tolist()
    written = iter([codes_to_text(each) for each in codes])
    return [
        "".join(piece if i == 0 else next(written) + piece for i, piece in enumerate(text.split(MASK_PLACEHOLDER)))
        for text in texts
    ]


def _contents(text: str, images: Iterator[str]) -> Iterator[ContentText | ContentImage]:
    for i, piece in enumerate(text.split(IMAGE_PLACEHOLDER)):
        if i:
            image = next(images, None)
            if image is None:
                raise ValueError("images: got fewer than there are <image> in the messages")
            yield ContentImage(image=image)
        if piece.strip():
            yield ContentText(text=piece)


def _absolute(source: Any) -> Any:
    """A path as it can be read from any folder; other masks and images as they are."""
    if isinstance(source, dict) and isinstance(source.get("path"), str):
        source = source["path"]
    return os.path.abspath(find_file(source)) if isinstance(source, str) else source
