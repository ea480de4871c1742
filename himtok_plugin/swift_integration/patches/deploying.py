"""`swift deploy`: requests, responses and streams of the server."""

from __future__ import annotations

from functools import partial

from .replacing import add, around


def serve_segments() -> None:
    """What: chat requests can have masks, and responses have segments. All routes check what clients send, within
    limits that are options, and load the images of a request once.
    Why: requests and responses have fixed fields. ms-swift checks few of them and limits nothing, reads the server's
    files, and answers many bad requests with status 500.
    Goes when: a plugin can extend requests and responses, and the server checks requests.
    Upstream: none known (looked 2026-11-28).
    """
    from contextlib import nullcontext

    import swift.pipelines.infer.deploy as deploy
    from swift.infer_engine import TransformersEngine

    from himtok_plugin.swift_integration.answering.engine_logprobs import infer_with_logprobs, needs_logprobs
    from himtok_plugin.swift_integration.model.mask_runtime import get_mask_runtime
    from himtok_plugin.swift_integration.serving.answers import answer_with_segments
    from himtok_plugin.swift_integration.serving.chat_requests import SegmentInferRequest
    from himtok_plugin.swift_integration.serving.generation_limits import limit_generation
    from himtok_plugin.swift_integration.serving.routes import add_routes
    from himtok_plugin.swift_integration.serving.segment_stream import PROBABILITIES_ATTRIBUTE

    SwiftDeploy = deploy.SwiftDeploy

    @around(SwiftDeploy, "_register_app")  # not `__init__`: plugins are imported inside it
    def register_app(original, self):
        original(self)
        self.infer_engine.strict = False
        add_routes(self)

    @around(SwiftDeploy, "_prepare_request_media")
    def prepare_request_media(original, infer_request):
        # Media are loaded and checked. Temporary files of videos are in no folder of SWIFT_MEDIA_ALLOWED_DIRS.
        is_loaded = isinstance(infer_request, SegmentInferRequest) and infer_request.sizes is not None
        return nullcontext(infer_request) if is_loaded else original(infer_request)

    @add(SwiftDeploy, "infer_async", hides=TransformersEngine.infer_async)  # through SwiftInfer.__getattr__
    async def infer_async(self, infer_request, request_config=None, **kwargs):
        infer, runtime = self.infer_engine.infer_async, get_mask_runtime(self.template)
        if not isinstance(infer_request, SegmentInferRequest):
            return await infer(infer_request, request_config, **kwargs)
        limit_generation(request_config, self.args, self.infer_engine.max_model_len)
        if runtime is None:
            return await infer(infer_request, request_config, **kwargs)
        if needs_logprobs(self.infer_engine, runtime.settings, request_config.stream):
            infer = partial(infer_with_logprobs, infer)
        threads = self.himtok_desk.threads
        return await answer_with_segments(runtime, infer, infer_request, request_config, threads, **kwargs)

    @around(TransformersEngine, "_infer_stream")
    def infer_stream(original, self, *args, **kwargs):
        runtime = get_mask_runtime(self.template)
        for chunks in original(self, *args, **kwargs):
            for i, chunk in enumerate(chunks):
                if runtime is not None and chunk is not None:
                    setattr(chunk, PROBABILITIES_ATTRIBUTE, runtime.generation.bind_probabilities(i))
            yield chunks


def isolate_requests() -> None:
    """What: a stream that fails in a batch fails alone, no prompt takes the room for the answers to others, and
    requests whose clients are gone are skipped.
    Why: an error in one request of a batch fails all of them, and all get the room that the longest prompt leaves.
    Goes when: ms-swift's engine isolates errors.
    Upstream: modelscope/ms-swift#7045 (one bad sample fails the others; there in `swift infer`).
    """
    from swift.infer_engine import InferEngine, TransformersEngine

    from himtok_plugin.swift_integration.serving.isolated_batches import check_room, stream_in_parts

    @around(TransformersEngine, "_infer")
    def infer(original, self, infer_requests, request_config, **kwargs):
        if getattr(self, "strict", True) or not request_config.stream:  # answering.py isolates the latter
            return original(self, infer_requests, request_config, **kwargs)
        return stream_in_parts(lambda part: original(self, part, request_config, **kwargs), infer_requests)

    @around(InferEngine, "set_default_max_tokens")
    def set_default_max_tokens(original, self, request_config, inputs):
        mask = inputs.get("attention_mask")
        if not getattr(self, "strict", True) and getattr(mask, "ndim", 0) == 2:
            check_room(mask.sum(1).tolist(), request_config.max_tokens, self.max_model_len)
        return original(self, request_config, inputs)

    @around(TransformersEngine, "_fetch_infer_requests")
    def fetch_infer_requests(original, self):
        batch = original(self)
        if batch is None:
            return None
        kwargs, queues = batch
        waiting = [
            (request, queue)
            for request, queue in zip(kwargs["infer_requests"], queues, strict=True)
            if not getattr(request, "is_abandoned", False)
        ]
        if not waiting:
            return None
        return {**kwargs, "infer_requests": [request for request, _ in waiting]}, [queue for _, queue in waiting]


def end_server() -> None:
    """What: after SIGTERM the server answers the requests in progress, within --shutdown_seconds, and exits.
    Why: uvicorn waits for them without limit, and ms-swift sets none.
    Goes when: ms-swift passes uvicorn a limit.
    Upstream: none known (looked 2026-11-29).
    """
    import swift.pipelines.infer.deploy as deploy

    from himtok_plugin.swift_integration.serving.ending import end_in_time

    @around(deploy.SwiftDeploy, "run")
    def run(original, self):
        with end_in_time(deploy, self.args.shutdown_seconds):
            return original(self)


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
