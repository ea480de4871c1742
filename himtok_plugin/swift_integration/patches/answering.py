"""Inference: engines, responses, and the result file of `swift infer`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .replacing import around

if TYPE_CHECKING:
    from himtok_plugin.swift_integration.model.mask_runtime import MaskRuntime


def constrain_engines() -> None:
    """What: vLLM, SGLang and LMDeploy constrain every answer to the grammar of mask text. SGLang is refused if masks
    are to be decoded softly.
    Why: these engines take no logits processors from a template, and ms-swift's own option is a regular expression that
    the user would have to write.
    Goes when: a template can change the sampling parameters of every engine.
    Upstream: modelscope/ms-swift#3356 and #4790 (guided decoding of vLLM through ms-swift).
    """
    from swift.infer_engine import InferEngine

    from himtok_plugin.swift_integration.answering.engine_logprobs import needs_logprobs
    from himtok_plugin.swift_integration.model.constraints import constrain_engine
    from himtok_plugin.swift_integration.model.mask_runtime import get_mask_runtime

    @around(InferEngine, "__init__")
    def init(original, self, template):
        original(self, template)
        runtime = get_mask_runtime(template)
        if runtime is not None:
            needs_logprobs(self, runtime.settings)  # raises an error before the engine loads the model
            constrain_engine(self, runtime.build_answer_pattern())


def attach_masks_to_responses() -> None:
    """What: responses of ms-swift's transformers engine have masks, refined if `--refiner` is set.
    Why: a template sees the generated ids but not the response, and a refiner needs the image of the request.
    Goes when: a template can change a response object.
    Upstream: none known (looked 2026-11-28).
    """
    from swift.infer_engine import TransformersEngine

    from himtok_plugin.swift_integration.answering.refining import refine_responses
    from himtok_plugin.swift_integration.answering.response_masks import attach_masks
    from himtok_plugin.swift_integration.model.mask_runtime import get_mask_runtime

    @around(TransformersEngine, "_infer_full")
    def infer_full(original, self, inputs, *, template_inputs, **kwargs):
        responses = original(self, inputs, template_inputs=template_inputs, **kwargs)
        runtime = get_mask_runtime(self.template)
        if runtime is not None:
            attach_masks(runtime, template_inputs, responses)
        return responses

    @around(TransformersEngine, "_infer")
    def infer(original, self, infer_requests, request_config, **kwargs):
        responses = original(self, infer_requests, request_config, **kwargs)
        runtime = get_mask_runtime(self.template)
        if runtime is not None and runtime.settings.refiner != "none" and not request_config.stream:
            refine_responses(
                runtime, infer_requests, responses, lambda more: original(self, more, request_config, **kwargs)
            )
        return responses


@contextmanager
def _record_responses(pipeline: Any, runtime: MaskRuntime | None) -> Iterator[list[Any]]:
    """Collect the responses of the pipeline's engine inside the context; for a stream, a `CollectedStream`.

    The engine is asked for log-probabilities if masks are decoded from them.
    """
    from himtok_plugin.swift_integration.answering.engine_logprobs import (
        CollectedStream,
        keep_logprobs,
        needs_logprobs,
        with_logprobs,
    )

    recorded: list[Any] = []
    engine = pipeline.infer_engine

    def infer(requests, config, **kwargs):
        if runtime is None or config is None or not needs_logprobs(engine, runtime.settings, config.stream):
            responses = engine.infer(requests, config, **kwargs)
        else:
            keep = CollectedStream if config.stream else keep_logprobs
            responses = [keep(each, config) for each in engine.infer(requests, with_logprobs(config), **kwargs)]
        recorded.extend(responses)
        return responses

    pipeline.infer = infer
    try:
        yield recorded
    finally:
        del pipeline.infer


def resume_results() -> None:
    """What: `--resume_result` skips rows that already have a result.
    Why: ms-swift runs all rows of a dataset, whatever the result file holds.
    Goes when: ms-swift can resume inference and identifies rows.
    Upstream: none known (looked 2026-11-28).
    """
    from swift.pipelines.infer.infer import SwiftInfer

    from himtok_plugin.swift_integration.answering.resumed_results import select_rows_without_result

    @around(SwiftInfer, "_prepare_val_dataset")
    def prepare_val_dataset(original, self):
        rows = original(self)
        return select_rows_without_result(rows, self.args.result_path) if self.args.resume_result else rows


def write_masks_to_results() -> None:
    """What: `swift infer` adds `masks` and `boxes` to its results, and writes images to `--mask_dir` and a run card.
    Why: the pipeline builds a result from fixed fields of the response.
    Goes when: a plugin can change results before they are written.
    Upstream: modelscope/ms-swift#4693 and #3936 (further fields in results).
    """
    from swift.pipelines.infer.infer import SwiftInfer

    from himtok_plugin.swift_integration.answering.engine_logprobs import CollectedStream, get_logprobs
    from himtok_plugin.swift_integration.answering.mask_pictures import MaskPictures
    from himtok_plugin.swift_integration.answering.response_masks import RESPONSE_ATTRIBUTE, predict_masks_from_text
    from himtok_plugin.swift_integration.answering.result_boxes import add_boxes_to_result
    from himtok_plugin.swift_integration.answering.result_masks import add_masks_to_result
    from himtok_plugin.swift_integration.answering.run_card import write_run_card
    from himtok_plugin.swift_integration.model.mask_runtime import get_mask_runtime

    def get_pictures(pipeline: Any) -> MaskPictures | None:
        if pipeline.args.mask_dir is None:
            return None
        if "himtok_pictures" not in pipeline.__dict__:
            pipeline.himtok_pictures = MaskPictures(pipeline.args.mask_dir, pipeline.args.rank)
        return pipeline.himtok_pictures

    def get_masks(runtime, response, text: str, row):
        """Return the response's masks, or else predict them from its text."""
        masks = logprobs = None
        if hasattr(response, "choices"):
            masks = getattr(response.choices[0].message, RESPONSE_ATTRIBUTE, None)
            logprobs = get_logprobs(response.choices[0])
        elif isinstance(response, CollectedStream):
            logprobs = response.logprobs
        return predict_masks_from_text(runtime, text, row, logprobs) if masks is None else masks

    @around(SwiftInfer, "_batch_infer")
    def batch_infer(original, self, val_dataset, request_config):
        runtime = get_mask_runtime(self.template)
        if runtime is None:
            return original(self, val_dataset, request_config)
        write_run_card(self.args, runtime)
        pictures = get_pictures(self)
        with _record_responses(self, runtime) as responses:
            rows = original(self, val_dataset, request_config)
        for row, response in zip(rows, responses, strict=False):  # other ranks of a parallel engine write no rows
            masks = get_masks(runtime, response, row["response"], row)
            add_masks_to_result(row, masks)
            add_boxes_to_result(row, row["response"], self.template)
            if pictures is not None:
                pictures.write(row, masks)
        return rows

    @around(SwiftInfer, "infer_single")
    def infer_single(original, self, infer_request, request_config):
        runtime = get_mask_runtime(self.template)
        if runtime is not None:
            write_run_card(self.args, runtime)
        with _record_responses(self, runtime) as responses:
            text = original(self, infer_request, request_config)
        if runtime is not None and isinstance(infer_request, dict):
            masks = get_masks(runtime, responses[0], text, infer_request)
            add_masks_to_result(infer_request, masks)
            add_boxes_to_result(infer_request, text, self.template)
            if self.args.mask_dir is None and self.args.eval_human:
                self.args.mask_dir = "masks"  # an interactive user wants to see the answer
            pictures = get_pictures(self)
            if masks and pictures is not None:
                print("masks: " + ", ".join(pictures.write(infer_request, masks)))
        return text


def gather_results_on_cpus() -> None:
    """What: under torchrun without an accelerator, the result file has the results of all processes.
    Why: ms-swift gathers results through accelerate. On CPUs, accelerate detects several processes only with
    `cpu=True`; otherwise it returns each process its own results, and those of all processes but the first are silently
    lost.
    Goes when: ms-swift gathers through torch.distributed, or `swift infer` has `--use_cpu`.
    Upstream: huggingface/accelerate#2741 (several processes on CPUs).
    """
    from accelerate import PartialState
    from swift.pipelines.infer.infer import SwiftInfer

    @around(SwiftInfer, "infer_dataset")
    def infer_dataset(original, self):
        if self.args.global_world_size > 1 and not PartialState().use_distributed:
            PartialState._reset_state()
            PartialState(cpu=True)
        return original(self)
