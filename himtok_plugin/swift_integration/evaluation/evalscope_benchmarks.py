"""Benchmarks of `swift eval --plugin himtok`: masks, boxes and choices from any OpenAI-compatible server.

Contract: `register_benchmarks` registers `refcoco_seg`, `grefcoco_seg`, `reasonseg`, `rec` and `mask_perception` with
evalscope. Their data is rows.jsonl from `himtok prepare`; `local_path` in `--eval_dataset_args` names the file, or a
folder in which every *.jsonl is a subset. Masks are decoded in this process from the text of answers, softly if the
server sends `logprobs`, so every server works; options that have no effect then are refused. Beside evalscope's report,
the run's folder has a report with protocol and run card, and a result file that `himtok eval` reads. All scores are
computed from its results; a question without an answer is in it as a missing one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from evalscope.api.benchmark import BenchmarkMeta
from evalscope.api.dataset import Sample
from evalscope.api.metric.semantics import MetricSelector
from evalscope.api.registry import BENCHMARK_REGISTRY, register_benchmark

from himtok_plugin.data.samples import row_masks
from himtok_plugin.evaluation.ground_truth import ASKS_FOR_MASKS, select_answer_boxes, select_answer_masks
from himtok_plugin.evaluation.protocols import PROTOCOLS
from himtok_plugin.evaluation.scoring import ResultScores
from himtok_plugin.masks import mask_bbox
from himtok_plugin.metrics.boxes import BOX_LEVELS, BOX_SCALES, BoxMetrics, box_iou, boxes_in_text
from himtok_plugin.metrics.choices import ChoiceMetrics, choice_letter
from himtok_plugin.swift_integration.answering.result_boxes import (
    RESIZED,
    THOUSANDTHS,
    get_norm_bbox,
    parse_answer_boxes,
)
from himtok_plugin.swift_integration.options.current_arguments import get_current_arguments

from .benchmark_rows import RowBenchmark, make_absolute


class MaskBenchmark(RowBenchmark):
    """Compares the masks of an answer with the target masks."""

    @property
    def decodes_masks(self) -> bool:
        return True

    def _sample(self, row: dict[str, Any], number: int) -> Sample:
        sample = super()._sample(row, number)
        assert sample.metadata is not None
        self.protocol.check_question(sample.metadata["messages"][-1]["content"], sample.metadata.get("expressions"))
        return sample

    def get_ground_truth(self, row: dict[str, Any], answer: str, size: tuple[int, int]) -> dict[str, Any]:
        masks = select_answer_masks(row_masks(row), row["messages"], row.get(ASKS_FOR_MASKS))
        if masks is None:
            raise ValueError(f"masks: got a question that asks for none ({answer!r:.80}), expected one that does")
        return {"target_masks": [make_absolute(mask) for mask in masks]}

    def judge(self, text: str, metadata: dict[str, Any], logprobs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        height, width = metadata["size"]
        columns = {"masks": [mask.to_dict() for mask in self.predict_masks(text, (height, width), logprobs)]}
        return columns, {"iou": ResultScores(self.protocol, boundary=False).add({**metadata, **columns})}

    def compute_scores(self, results: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
        scores = ResultScores(self.protocol, boundary=False)
        for result in results:
            scores.add(result, f"row {result['row']}")
        return scores.compute(), scores.classes.per_class()


class BoxBenchmark(RowBenchmark):
    """Compares the first box of an answer, or the box of its first mask, with the target box."""

    @property
    def decodes_masks(self) -> bool:
        return self.extra_params["box_from"] == "mask"

    def check_options(self) -> None:
        super().check_options()
        if not self.decodes_masks and self.extra_params["box_scale"] == BY_TEMPLATE:
            _check_template(get_current_arguments())

    def get_ground_truth(self, row: dict[str, Any], answer: str, size: tuple[int, int]) -> dict[str, Any]:
        boxes = select_answer_boxes(row.get("objects"), row["messages"], size)
        if boxes is None or len(boxes) != 1:
            raise ValueError(f"objects: got {row.get('objects')!r:.120}, expected one box [x1, y1, x2, y2]")
        return {"target_boxes": boxes}

    def judge(self, text: str, metadata: dict[str, Any], logprobs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        boxes = [[float(value) for value in box] for box in self._predict_boxes(text, metadata, logprobs)]
        return {"boxes": boxes}, {"iou": box_iou(boxes[0], metadata["target_boxes"][0]) if boxes else 0.0}

    def _predict_boxes(self, text: str, metadata: dict[str, Any], logprobs: Any) -> Sequence[Sequence[float]]:
        height, width = metadata["size"]
        scale = self.extra_params["box_scale"]
        if self.decodes_masks:
            masks = self.predict_masks(text, (height, width), logprobs)[:1]
            return [mask_bbox(mask.mask) for mask in masks if mask.mask.any()]
        if scale != BY_TEMPLATE:
            return boxes_in_text(text, (height, width), scale)
        if get_norm_bbox(get_current_arguments()) == THOUSANDTHS:
            return boxes_in_text(text, (height, width))
        boxes = parse_answer_boxes(text, metadata["images"][0], _load_template())
        if boxes is None:
            raise ValueError("box_scale: got a template from which the size of resized images is unknown, " + EXPLICIT)
        return boxes

    def compute_scores(self, results: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
        metrics = BoxMetrics()
        for result in results:
            metrics.update(result["boxes"][0] if result["boxes"] else None, result["target_boxes"][0])
        return metrics.compute(), {}


class ChoiceBenchmark(RowBenchmark):
    """Compares the letter of an answer with the correct one."""

    def get_ground_truth(self, row: dict[str, Any], answer: str, size: tuple[int, int]) -> dict[str, Any]:
        if choice_letter(answer) is None:
            raise ValueError(f"messages: got the answer {answer!r:.80}, expected one with a letter")
        return {"answer": answer}

    def judge(self, text: str, metadata: dict[str, Any], logprobs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        letter = choice_letter(text)
        return {"choice": letter}, {"acc": float(letter == choice_letter(metadata["answer"]))}

    def compute_scores(self, results: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
        metrics = ChoiceMetrics()
        for result in results:
            metrics.update(result["response"], result["answer"])
        return metrics.compute(), {}


def register_benchmarks() -> None:
    """Register the benchmarks with evalscope; idempotent."""
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
EXPLICIT = f"expected box_scale in extra_params, one of {', '.join(BOX_SCALES)}"
BOX_PARAMETERS = {
    "box_scale": {
        "type": "str",
        "description": "The unit of a box's coordinates: that of the model's template (thousandths of the image, or "
        "pixels of the resized image), fractions of the image, thousandths of it, or its pixels.",
        "value": BY_TEMPLATE,
        "choices": [BY_TEMPLATE, *BOX_SCALES],
    },
    "box_from": {
        "type": "str",
        "description": "Whether a box is read from the answer's text, or is the bounding box of its first mask.",
        "value": "text",
        "choices": ["text", "mask"],
    },
}


def _protocol(default: str) -> dict[str, Any]:
    description = "Evaluation protocol. " + " ".join(f"{p.name}: {p.summary}" for p in PROTOCOLS.values())
    return {"protocol": {"type": "str", "description": description, "value": default, "choices": list(PROTOCOLS)}}


def _check_template(args: Any) -> None:
    """Raise ValueError if boxes in the template's unit cannot be read."""
    norm = get_norm_bbox(args)
    if norm is None:
        raise ValueError(f"box_scale: got the model {args.model!r}, whose template is unknown, " + EXPLICIT)
    if norm == RESIZED and getattr(args, "eval_url", None):
        raise ValueError(
            f"box_scale: got a template ({args.template}) that writes pixels of the image as {args.eval_url} resizes "
            "it, and its settings are unknown, " + EXPLICIT
        )


@cache
def _load_template() -> Any:
    """Load the evaluated model's template, which resizes images as the server of this process does."""
    args: Any = get_current_arguments()
    return args.get_template()
