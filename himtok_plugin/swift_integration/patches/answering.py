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
    """What: responses of ms-swift's transformers engine have masks, refined if `--refiner` is set. If the engine is not
    strict, an error of one request does not fail the batch.
    Why: a template sees the generated ids but not the response, and a refiner needs the image of the request. Without
    `strict`, ms-swift isolates only what the encoding of a request raises.
    Goes when: a template can change a response object, and ms-swift isolates the other errors.
    Upstream: modelscope/ms-swift#7045 (one bad sample fails the others).
    """
    from swift.infer_engine import TransformersEngine

    from himtok_plugin.swift_integration.answering.failed_answers import infer_apart
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
        if request_config.stream or getattr(self, "strict", True):
            responses = original(self, infer_requests, request_config, **kwargs)
        else:  # `strict` does not cover what the batch as a whole raises, such as one request that is too long

            def ask(some):
                return original(self, some, request_config, **kwargs)

            responses = infer_apart(ask, infer_requests)
        runtime = get_mask_runtime(self.template)
        if runtime is not None and runtime.settings.refiner != "none" and not request_config.stream:
            refine_responses(
                runtime, infer_requests, responses, lambda more: original(self, more, request_config, **kwargs)
            )
        return responses


@contextmanager
def _record_responses(pipeline: Any, runtime: MaskRuntime | None) -> Iterator[list[Any]]:
    """Collect the responses of the pipeline's engine inside the context, for a stream a `GuardedStream`.

    A row that fails gets a `FailedAnswer`; in a dialogue, the error is raised. The engine is asked for
    log-probabilities if masks are decoded from them.
    """
    from himtok_plugin.swift_integration.answering.engine_logprobs import (
        CollectedStream,
        keep_logprobs,
        needs_logprobs,
        with_logprobs,
    )
    from himtok_plugin.swift_integration.answering.failed_answers import GuardedStream, answer_rows, get_column

    recorded: list[Any] = []
    engine = pipeline.infer_engine

    def infer(requests, config, **kwargs):
        stream = config is not None and config.stream
        asks_logprobs = runtime is not None and config is not None and needs_logprobs(engine, runtime.settings, stream)

        def ask(some):
            if not asks_logprobs:
                return engine.infer(some, config, **kwargs)
            keep = CollectedStream if stream else keep_logprobs
            return [keep(each, config) for each in engine.infer(some, with_logprobs(config), **kwargs)]

        if runtime is None or pipeline.args.eval_human:
            responses = ask(requests)
        elif stream:  # `infer_single` asks about one row
            (row,) = requests
            responses = [GuardedStream(get_column(row), lambda: ask([row])[0])]
        else:
            engine.strict = False  # ms-swift returns the error of a request as its answer
            responses = answer_rows(ask, requests)
        recorded.extend(responses)
        return responses

    pipeline.infer = infer
    try:
        yield recorded
    finally:
        del pipeline.infer


def resume_results() -> None:
    """What: `--resume_result` skips rows that already have a result. Rows that preprocessing cannot use are kept.
    Why: ms-swift runs all rows of a dataset, whatever the result file holds, except those that it deletes because it
    cannot use them.
    Goes when: ms-swift can resume inference, identifies rows and writes a result for each.
    Upstream: none known (looked 2026-11-28).
    """
    from swift.pipelines.infer.infer import SwiftInfer

    from himtok_plugin.swift_integration.answering.resumed_results import (
        drop_unfinished_results,
        select_rows_without_result,
        warn_about_appending,
    )
    from himtok_plugin.swift_integration.model.mask_runtime import get_mask_runtime
    from himtok_plugin.swift_integration.samples.failed_rows import keep_failed_rows

    @around(SwiftInfer, "_prepare_val_dataset")
    def prepare_val_dataset(original, self):
        if get_mask_runtime(self.template) is None:
            return original(self)
        with keep_failed_rows():
            rows = original(self)
        if not self.args.resume_result:
            warn_about_appending(self.args.result_path)
            return rows
        rows = select_rows_without_result(rows, self.args.result_path)
        if self.args.rank <= 0:
            drop_unfinished_results(self.args.result_path)
        return rows


def write_masks_to_results() -> None:
    """What: `swift infer` adds `masks`, `boxes` and `unknown_words` to results, and writes images to `--mask_dir` and a
    run card. A row that fails gets a result with `error`; the run then ends with exit status 1 after all other rows.
    Why: the pipeline builds a result from fixed fields of the response, and ends at the first row that fails.
    Goes when: a plugin can change results before they are written, and ms-swift writes a result for each row.
    Upstream: modelscope/ms-swift#4693 and #3936 (further fields in results), #7045 (one bad sample fails the others).
    """
    from swift.pipelines.infer.infer import SwiftInfer

    from himtok_plugin.swift_integration.answering.engine_logprobs import CollectedStream, get_logprobs
    from himtok_plugin.swift_integration.answering.failed_answers import FailureCount, get_column
    from himtok_plugin.swift_integration.answering.mask_pictures import MaskPictures
    from himtok_plugin.swift_integration.answering.response_masks import RESPONSE_ATTRIBUTE, predict_masks_from_text
    from himtok_plugin.swift_integration.answering.result_boxes import add_boxes_to_result
    from himtok_plugin.swift_integration.answering.result_masks import add_error_to_result, add_masks_to_result
    from himtok_plugin.swift_integration.answering.run_card import write_run_card
    from himtok_plugin.swift_integration.model.mask_runtime import get_mask_runtime
    from himtok_plugin.swift_integration.samples.failed_rows import describe_error
    from himtok_plugin.words.known_words import UNKNOWN_WORDS, describe_unknown_words

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

    def complete_result(pipeline, runtime, row, response, text: str) -> list[str]:
        """Add masks and boxes, or the error, to a result. Return the paths of its pictures."""
        error, masks = getattr(response, "error", None), []
        if error is None:
            name = get_column(row).name
            try:
                masks = get_masks(runtime, getattr(response, "answer", response), text, row)
                add_boxes_to_result(row, text, pipeline.template)
            except (ValueError, TypeError, LookupError, OSError) as failure:  # of the row's image or true boxes
                error, masks = describe_error(name, failure), []
        if error is None:
            add_masks_to_result(row, masks)
            if unknown_words := runtime.find_unknown_words(row["messages"]):
                row[UNKNOWN_WORDS] = unknown_words
        else:
            add_error_to_result(row, error)
        if "himtok_failures" in vars(pipeline):
            pipeline.himtok_failures.add(error)
        pictures = get_pictures(pipeline)
        return [] if pictures is None else pictures.write(row, masks)

    @around(SwiftInfer, "_batch_infer")
    def batch_infer(original, self, val_dataset, request_config):
        runtime = get_mask_runtime(self.template)
        if runtime is None:
            return original(self, val_dataset, request_config)
        write_run_card(self.args, runtime)
        with _record_responses(self, runtime) as responses:
            rows = original(self, val_dataset, request_config)
        for row, response in zip(rows, responses, strict=False):  # other ranks of a parallel engine write no rows
            complete_result(self, runtime, row, response, row["response"])
        return rows

    @around(SwiftInfer, "infer_single")
    def infer_single(original, self, infer_request, request_config):
        runtime = get_mask_runtime(self.template)
        if runtime is not None:
            write_run_card(self.args, runtime)
        with _record_responses(self, runtime) as responses:
            text = original(self, infer_request, request_config)
        if runtime is not None and isinstance(infer_request, dict):
            if self.args.mask_dir is None and self.args.eval_human:
                self.args.mask_dir = "masks"  # an interactive user wants to see the answer
            paths = complete_result(self, runtime, infer_request, responses[0], text)
            if unknown_words := infer_request.get(UNKNOWN_WORDS):
                print(describe_unknown_words(unknown_words))
            if paths:
                print("masks: " + ", ".join(paths))
            elif error := getattr(responses[0], "error", None):
                print(f"error: {error}")
                return ""
        return text

    @around(SwiftInfer, "run")
    def run(original, self):
        counts = get_mask_runtime(self.template) is not None and not self.args.eval_human
        if counts:
            self.himtok_failures = FailureCount()
        results = original(self)
        if counts:
            self.himtok_failures.check(self.args.result_path)
        return results


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
