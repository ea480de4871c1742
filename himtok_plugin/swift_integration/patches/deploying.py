"""`swift deploy`: requests, answers and streams of its server."""

from __future__ import annotations

from http import HTTPStatus

from .replacing import add, around


def serve_segments() -> None:
    """What: chat requests to `swift deploy` may have masks, answers have segments, and a bad request fails alone, with
    status 400 and ms-swift's form of an error.
    Why: requests and answers are built from fixed fields; an error in one row of a batch is told to all of them; of the
    web framework's own form of an error the `openai` package shows nothing.
    Goes when: requests and responses can be extended, and the server isolates errors.
    """
    import swift.pipelines.infer.deploy as deploy
    from fastapi.exceptions import RequestValidationError
    from swift.infer_engine import TransformersEngine

    from himtok_plugin.swift_integration.answering.chat_requests import (
        SegmentChatRequest,
        SegmentInferRequest,
        summarize_validation_errors,
    )
    from himtok_plugin.swift_integration.answering.segment_stream import PROBABILITIES_ATTRIBUTE
    from himtok_plugin.swift_integration.answering.serving import answer_with_segments
    from himtok_plugin.swift_integration.model.mask_runtime import get_mask_runtime

    SwiftDeploy = deploy.SwiftDeploy

    async def refuse(request, error):
        return SwiftDeploy.create_error_response(HTTPStatus.BAD_REQUEST, summarize_validation_errors(error.errors()))

    @around(SwiftDeploy, "_register_app")  # not `__init__`, which is what imports plugins
    def register_app(original, self):
        original(self)
        self.infer_engine.strict = False
        self.app.add_exception_handler(RequestValidationError, refuse)

    @add(SwiftDeploy, "infer_async")  # else its engine's
    async def infer_async(self, infer_request, request_config=None, **kwargs):
        infer, runtime = self.infer_engine.infer_async, get_mask_runtime(self.template)
        if runtime is None or not isinstance(infer_request, SegmentInferRequest):
            return await infer(infer_request, request_config, **kwargs)
        return await answer_with_segments(runtime, infer, infer_request, request_config, **kwargs)

    @around(TransformersEngine, "_infer_stream")
    def infer_stream(original, self, *args, **kwargs):
        runtime = get_mask_runtime(self.template)
        for chunks in original(self, *args, **kwargs):
            for i, chunk in enumerate(chunks):
                if runtime is not None and chunk is not None:
                    setattr(chunk, PROBABILITIES_ATTRIBUTE, runtime.generation.bind_probabilities(i))
            yield chunks

    # The web framework reads a request by its annotation.
    SwiftDeploy.create_chat_completion.__annotations__["request"] = deploy.ChatCompletionRequest = SegmentChatRequest


def stream_text_at_mask_tokens() -> None:
    """What: a stream hands its text on where a mask closes, and where it is to be previewed.
    Why: ms-swift waits for a space or a line break, which masks have none of.
    Goes when: the template can say where.
    """
    from swift.infer_engine.utils import InferStreamer

    from himtok_plugin.swift_integration.answering.segment_stream import should_flush

    @around(InferStreamer, "_get_response")
    def get_response(original, self, response, is_finished, token_len):
        inputs = self.decode_kwargs.get("template_inputs")
        previews = getattr(inputs, "extra_kwargs", {}).get("mask_previews") or []
        if self.first_token or is_finished or not should_flush(response, previews):
            return original(self, response, is_finished, token_len)
        text = response[self.print_idx :]
        self.print_idx = len(response)
        return text


def end_streams_that_fail() -> None:
    """What: an error that `MaskTemplateMixin.generate` puts into a stream is raised where the stream is read.
    Why: ms-swift generates on a thread of its own and waits for its tokens, after an error for ever: one request, say
    with temperature -1, would stop the server.
    Goes when: ms-swift passes errors on.
    """
    from swift.infer_engine.utils import StreamerMixin

    @around(StreamerMixin, "__next__")
    def next_or_raise(original, self):
        value = original(self)
        if isinstance(value, Exception):
            raise value
        return value
