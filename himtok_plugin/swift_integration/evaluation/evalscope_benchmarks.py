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
from himtok_plugin.masks.sources import mask_bbox
from himtok_plugin.metrics.boxes import BOX_LEVELS, BOX_SCALES, BoxMetrics, box_iou, boxes_in_text
from himtok_plugin.metrics.choices import ChoiceMetrics, choice_letter
from himtok_plugin.swift_integration.answering.result_boxes import (
    RESIZED,
    THOUSANDTHS,
    get_norm_bbox,
    parse_answer_boxes,
)
from himtok_plugin.swift_integration.options.current_arguments import get_current_arguments

from .benchmark_rows import RowBenchmark, absolute


class MaskBenchmark(RowBenchmark):
    """Masks of an answer against the true ones."""

    decodes_masks = True

    def _sample(self, row: dict[str, Any], number: int) -> Sample:
        sample = super()._sample(row, number)
        self.protocol.check_question(sample.metadata["messages"][-1]["content"], sample.metadata.get("expressions"))
        return sample

    def truth(self, row, answer, size):
        masks = select_answer_masks(row_masks(row), row["messages"], row.get(ASKS_FOR_MASKS))
        if masks is None:
            raise ValueError(f"masks: got a row that asks for none ({answer!r:.80}), expected one that does")
        return {"target_masks": [absolute(mask) for mask in masks]}

    def judge(self, text, true, logprobs):
        row = {"masks": [mask.to_dict() for mask in self.masks_of(text, tuple(true["size"]), logprobs)]}
        return row, {"iou": ResultScores(self.protocol, boundary=False).add({**true, **row})}

    def scores_of(self, rows):
        scores = ResultScores(self.protocol, boundary=False)
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
            _check_template(get_current_arguments())

    def truth(self, row, answer, size):
        boxes = select_answer_boxes(row.get("objects"), row["messages"], size)
        if boxes is None or len(boxes) != 1:
            raise ValueError(f"objects: got {row.get('objects')!r:.120}, expected one box [x1, y1, x2, y2]")
        return {"target_boxes": boxes}

    def judge(self, text, true, logprobs):
        size, scale = tuple(true["size"]), self.extra_params["box_scale"]
        if self.decodes_masks:
            found = [mask_bbox(mask.mask) for mask in self.masks_of(text, size, logprobs)[:1] if mask.mask.any()]
        elif scale != BY_TEMPLATE:
            found = boxes_in_text(text, size, scale)
        elif get_norm_bbox(get_current_arguments()) == THOUSANDTHS:
            found = boxes_in_text(text, size)
        else:
            found = parse_answer_boxes(text, true["images"][0], _template())
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
EXPLICIT = f"expected box_scale in extra_params, one of {', '.join(BOX_SCALES)}"
BOX_PARAMETERS = {
    "box_scale": {
        "type": "str",
        "description": "What the numbers of a box mean: what the model's template writes (thousandths of the image, or "
        "pixels of it as it was resized), shares of the image, thousandths of it, or its own pixels.",
        "value": BY_TEMPLATE,
        "choices": [BY_TEMPLATE, *BOX_SCALES],
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


def _check_template(args: Any) -> None:
    """ValueError where the template's boxes cannot be read."""
    norm = get_norm_bbox(args)
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
    return get_current_arguments().get_template()
