"""Inference: engines, their responses, and the rows that `swift infer` writes."""

from __future__ import annotations

from contextlib import contextmanager

from .replacing import around


def constrain_engines() -> None:
    """What: vLLM, SGLang and LMDeploy are given this run's grammar of answers with every request.
    Why: they take no logits processors from a template, and ms-swift's own option is a whole regular expression.
    Goes when: templates can change the sampling parameters of every engine.
    """
    from swift.infer_engine import InferEngine

    from himtok_plugin.swift_integration.model.constraints import constrain_engine
    from himtok_plugin.swift_integration.model.mask_runtime import get_mask_runtime

    @around(InferEngine, "__init__")
    def init(original, self, template):
        original(self, template)
        runtime = get_mask_runtime(template)
        if runtime is not None:
            constrain_engine(self, runtime.build_answer_pattern())


def attach_masks_to_responses() -> None:
    """What: responses of ms-swift's own engine carry their masks, refined where `--refiner` says so.
    Why: the template sees generated ids, but cannot add to the response, and a refiner wants the request's own image.
    Goes when: templates can post-process a response object.
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
def _recording_responses(pipeline):
    """What the pipeline's engine answers within; of a stream that is no response."""
    noted = []

    def infer(*args, **kwargs):
        found = pipeline.infer_engine.infer(*args, **kwargs)
        noted.extend(found)
        return found

    pipeline.infer = infer
    try:
        yield noted
    finally:
        del pipeline.infer


def go_on_with_results() -> None:
    """What: with `--resume_result`, rows that have a result already are left out.
    Why: ms-swift asks all rows of a dataset, whatever its result file holds.
    Goes when: it can go on, by something that tells rows apart.
    """
    from swift.pipelines.infer.infer import SwiftInfer

    from himtok_plugin.swift_integration.answering.resumed_results import select_rows_without_result

    @around(SwiftInfer, "_prepare_val_dataset")
    def prepare_val_dataset(original, self):
        rows = original(self)
        return select_rows_without_result(rows, self.args.result_path) if self.args.resume_result else rows


def write_masks_to_results() -> None:
    """What: `swift infer` writes `masks` and `boxes` into its rows, pictures into `--mask_dir`, and a card of the run.
    Why: the pipeline builds result rows from fixed fields of the response.
    Goes when: rows can be post-processed by a plugin.
    """
    from swift.pipelines.infer.infer import SwiftInfer

    from himtok_plugin.swift_integration.answering.mask_pictures import MaskPictures
    from himtok_plugin.swift_integration.answering.response_masks import RESPONSE_ATTRIBUTE, predict_masks_from_text
    from himtok_plugin.swift_integration.answering.result_boxes import add_boxes_to_result
    from himtok_plugin.swift_integration.answering.result_masks import add_masks_to_result
    from himtok_plugin.swift_integration.answering.run_card import write_run_card
    from himtok_plugin.swift_integration.model.mask_runtime import get_mask_runtime

    def pictures(pipeline) -> MaskPictures | None:
        if pipeline.args.mask_dir is None:
            return None
        if "himtok_pictures" not in pipeline.__dict__:
            pipeline.himtok_pictures = MaskPictures(pipeline.args.mask_dir, pipeline.args.rank)
        return pipeline.himtok_pictures

    def masks_of(runtime, noted, text: str, row):
        """Masks that came with the response, else those of its text."""
        masks = logprobs = None
        if hasattr(noted, "choices"):
            masks = getattr(noted.choices[0].message, RESPONSE_ATTRIBUTE, None)
            logprobs = noted.choices[0].logprobs
        return predict_masks_from_text(runtime, text, row, logprobs) if masks is None else masks

    @around(SwiftInfer, "_batch_infer")
    def batch_infer(original, self, val_dataset, request_config):
        runtime = get_mask_runtime(self.template)
        if runtime is None:
            return original(self, val_dataset, request_config)
        write_run_card(self.args, runtime)
        with _recording_responses(self) as noted:
            rows = original(self, val_dataset, request_config)
        for row, response in zip(rows, noted, strict=False):  # other ranks of a parallel engine write no rows
            masks = masks_of(runtime, response, row["response"], row)
            add_masks_to_result(row, masks)
            add_boxes_to_result(row, row["response"], self.template)
            if pictures(self) is not None:
                pictures(self).write(row, masks)
        return rows

    @around(SwiftInfer, "infer_single")
    def infer_single(original, self, infer_request, request_config):
        runtime = get_mask_runtime(self.template)
        if runtime is not None:
            write_run_card(self.args, runtime)
        with _recording_responses(self) as noted:
            text = original(self, infer_request, request_config)
        if runtime is not None and isinstance(infer_request, dict):
            masks = masks_of(runtime, noted[0], text, infer_request)
            add_masks_to_result(infer_request, masks)
            add_boxes_to_result(infer_request, text, self.template)
            if self.args.mask_dir is None and self.args.eval_human:
                self.args.mask_dir = "masks"  # who asks interactively wants to see the answer
            if masks and pictures(self) is not None:
                print("masks: " + ", ".join(pictures(self).write(infer_request, masks)))
        return text


def gather_results_on_cpus() -> None:
    """What: under torchrun without an accelerator, the rows of all processes get into the result file.
    Why: ms-swift gathers them through accelerate, which knows of several processes on CPUs only when told so, and else
    gives each process its own rows back: those of all but the first would be lost without a word.
    Goes when: ms-swift gathers through torch.distributed, or `swift infer` has `--use_cpu`.
    """
    from accelerate import PartialState
    from swift.pipelines.infer.infer import SwiftInfer

    @around(SwiftInfer, "infer_dataset")
    def infer_dataset(original, self):
        if self.args.global_world_size > 1 and not PartialState().use_distributed:
            PartialState._reset_state()
            PartialState(cpu=True)
        return original(self)
