"""`swift deploy`: requests, responses and streams of the server."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus

from .replacing import add, around


def serve_segments() -> None:
    """What: chat requests can have masks, and responses have segments. A bad request fails alone, with status 400 and
    ms-swift's error format.
    Why: requests and responses have fixed fields. An error in one request of a batch fails all of them. The `openai`
    package shows no text of an error in FastAPI's format.
    Goes when: a plugin can extend requests and responses, and the server isolates errors.
    Upstream: modelscope/ms-swift#7045 (one bad sample fails the others; there in `swift infer`).
    """
    import swift.pipelines.infer.deploy as deploy
    from fastapi.exceptions import RequestValidationError
    from swift.infer_engine import TransformersEngine

    from himtok_plugin.swift_integration.answering.engine_logprobs import infer_with_logprobs, needs_logprobs
    from himtok_plugin.swift_integration.model.mask_runtime import get_mask_runtime
    from himtok_plugin.swift_integration.serving.answers import answer_with_segments
    from himtok_plugin.swift_integration.serving.chat_requests import (
        SegmentChatRequest,
        SegmentInferRequest,
        summarize_validation_errors,
    )
    from himtok_plugin.swift_integration.serving.segment_stream import PROBABILITIES_ATTRIBUTE

    SwiftDeploy = deploy.SwiftDeploy

    async def refuse(request, error):
        return SwiftDeploy.create_error_response(HTTPStatus.BAD_REQUEST, summarize_validation_errors(error.errors()))

    @around(SwiftDeploy, "_register_app")  # not `__init__`: plugins are imported inside it
    def register_app(original, self):
        original(self)
        self.infer_engine.strict = False
        self.app.add_exception_handler(RequestValidationError, refuse)

    @add(SwiftDeploy, "infer_async", hides=TransformersEngine.infer_async)  # through SwiftInfer.__getattr__
    async def infer_async(self, infer_request, request_config=None, **kwargs):
        infer, runtime = self.infer_engine.infer_async, get_mask_runtime(self.template)
        if runtime is None or not isinstance(infer_request, SegmentInferRequest):
            return await infer(infer_request, request_config, **kwargs)
        if needs_logprobs(self.infer_engine, runtime.settings, request_config.stream):
            infer = partial(infer_with_logprobs, infer)
        return await answer_with_segments(runtime, infer, infer_request, request_config, **kwargs)

    @around(TransformersEngine, "_infer_stream")
    def infer_stream(original, self, *args, **kwargs):
        runtime = get_mask_runtime(self.template)
        for chunks in original(self, *args, **kwargs):
            for i, chunk in enumerate(chunks):
                if runtime is not None and chunk is not None:
                    setattr(chunk, PROBABILITIES_ATTRIBUTE, runtime.generation.bind_probabilities(i))
            yield chunks

    # FastAPI parses a request as the type of this annotation.
    SwiftDeploy.create_chat_completion.__annotations__["request"] = deploy.ChatCompletionRequest = SegmentChatRequest


def flush_streams_at_masks() -> None:
    """What: a stream sends its text when a mask closes, and when a preview of it is due.
    Why: ms-swift waits for a space or a line break, and mask text has neither.
    Goes when: a template decides when a stream sends its text.
    Upstream: none known (looked 2026-11-28).
    """
    from swift.infer_engine.utils import InferStreamer

    from himtok_plugin.swift_integration.serving.segment_stream import should_flush

    @around(InferStreamer, "_get_response")
    def get_response(original, self, response, is_finished, token_len):
        inputs = self.decode_kwargs.get("template_inputs")
        previews = getattr(inputs, "extra_kwargs", {}).get("mask_previews") or []
        if self.first_token or is_finished or not should_flush(response, previews):
            return original(self, response, is_finished, token_len)
        text = response[self.print_idx :]
        self.print_idx = len(response)
        return text


def raise_stream_errors() -> None:
    """What: the reader of a stream raises the error that `MaskTemplateMixin.generate` puts into it.
    Why: ms-swift generates in a thread and waits for its tokens, after an error forever. One request, for example with
    temperature -1, would block the server.
    Goes when: ms-swift passes errors from the thread to the reader.
    Upstream: modelscope/ms-swift#10133 (open pull request that does this).
    """
    from swift.infer_engine.utils import StreamerMixin

    @around(StreamerMixin, "__next__")
    def next_or_raise(original, self):
        value = original(self)
        if isinstance(value, Exception):
            raise value
        return value
