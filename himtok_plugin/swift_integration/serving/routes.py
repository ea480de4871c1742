"""Routes of `swift deploy`: each checks what a client has sent before ms-swift and the engine get it.

Contract: `add_routes` replaces the functions of all routes that take input. All of them answer a bad request with
status 400 and a reason, one that is too long with 413, and one too many at a time with 503, in ms-swift's error format.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from swift.infer_engine import RequestConfig
from swift.utils import get_logger

from himtok_plugin.validation import abridged

from .answers import explain_error
from .chat_requests import (
    SegmentChatRequest,
    SegmentInferRequest,
    build_chat_request,
    build_config,
    build_infer_request,
    set_media,
    shorten_reason,
)
from .generation_limits import limit_generation
from .message_texts import MEDIA, Conversation, count_characters, find_media_tokens
from .request_bodies import RequestRefused, parse_body, read_body
from .request_checks import read_conversation
from .request_media import LoadedMedia, MediaLimits, download_media, load_media

logger = get_logger()
_DOWNLOADS = 16  # at a time
_CONFIG_FIELDS = frozenset(each.name for each in fields(RequestConfig))
_BUSY, _CLOSED = 503, 499  # the latter is for logs: the client is gone


class RequestDesk:
    """What all requests to a server share.

    Args:
        server: ms-swift's `SwiftDeploy`, with the plugin's options in `args`.

    Attributes:
        threads: for reading images, and for decoding and drawing masks.
        active: number of requests in progress.
    """

    def __init__(self, server: Any):
        self.server = server
        self.settings = server.args
        self.threads = ThreadPoolExecutor(self.settings.answer_threads, "himtok-answer")
        self.downloads = ThreadPoolExecutor(_DOWNLOADS, "himtok-download")
        self.active = 0
        is_multimodal = server.infer_engine.model_meta.is_multimodal
        self.media_tokens = find_media_tokens(server.template) if is_multimodal else frozenset()
        self.max_characters = count_characters(server.template.tokenizer, server.infer_engine.max_model_len)

    async def serve(self, raw: Request, answer: Callable[[dict[str, Any], LoadedMedia], Coroutine]) -> Any:
        """Answer a request, or refuse it.

        Args:
            raw: the HTTP request.
            answer: answers its JSON; it gets the place of the request's media, which are removed afterwards.
        """
        media = LoadedMedia()
        with contextlib.ExitStack() as end:
            try:
                end.enter_context(self._admit())
                end.callback(media.close)
                body = await self._run(parse_body, await read_body(raw, self.settings.max_request_bytes))
                response = await _answer_while_connected(raw, answer(body, media))
            except RequestRefused as error:
                return self._refuse(error.status, str(error))
            except ClientDisconnect:
                return Response(status_code=_CLOSED)
            except ValueError as error:
                return self._refuse(400, str(explain_error(error)))
            except Exception as error:  # the checks have let something pass that they should not
                logger.exception("A request could not be read.")
                return self._refuse(400, f"request: got one that cannot be read ({shorten_reason(error)})")
            if isinstance(response, StreamingResponse):
                return _EndingStream(response, end.pop_all())
            return response

    async def prepare_chat(self, body: Mapping[str, Any], media: LoadedMedia) -> SegmentChatRequest:
        """Check a chat request's fields, messages and media, in the order of their cost."""
        conversation = await self._run(read_conversation, body, self.media_tokens, self.max_characters)
        own = {name: value for name, value in body.items() if name not in [f"{kind}s" for kind in MEDIA]}
        request = await self._run(build_chat_request, {**own, "messages": conversation.messages})
        refusal = await self.server._check_model(request) or self.server._check_max_logprobs(request)
        if refusal:
            raise RequestRefused(refusal)
        ready = await self._prepare(own, conversation, MediaLimits(self.settings), media)
        request.__dict__["himtok_ready"] = ready
        return request

    async def prepare_batch(
        self, body: Mapping[str, Any], media: LoadedMedia
    ) -> tuple[list[SegmentInferRequest], RequestConfig]:
        """Check a request to `/infer/`. The limits of media are those of all its requests together."""
        unknown = sorted(body.keys() - {"infer_requests", "request_config", "metrics", "use_tqdm", "adapter_request"})
        if unknown:
            raise RequestRefused(f"{unknown[0]:.80}: got an unknown field, expected infer_requests and request_config")
        config = await self._run(build_config, body.get("request_config"))
        with _named("request_config"):
            limit_generation(config, self.settings, self.server.infer_engine.max_model_len)
        refusal = self.server._check_max_logprobs(config)
        if refusal or config.stream:
            raise RequestRefused(refusal or "stream: got True, expected False for /infer/")
        bodies = body.get("infer_requests")
        most = self.settings.max_active_requests
        if not isinstance(bodies, list) or not bodies or len(bodies) > most:
            count = f"{len(bodies)} requests" if isinstance(bodies, list) else abridged(bodies)
            raise RequestRefused(f"infer_requests: got {count}, expected a list of 1 to {most} requests")
        limits, requests = MediaLimits(self.settings), []
        for i, each in enumerate(bodies):
            with _named(f"infer_requests[{i}]"):
                if not isinstance(each, dict):
                    raise ValueError(f"got {abridged(each)}, expected an object with messages")
                conversation = await self._run(read_conversation, each, self.media_tokens, self.max_characters)
                requests.append(await self._prepare(each, conversation, limits, media))
        return requests, config

    async def _prepare(
        self, body: Mapping[str, Any], conversation: Conversation, limits: MediaLimits, media: LoadedMedia
    ) -> SegmentInferRequest:
        known = {name: value for name, value in body.items() if name not in _CONFIG_FIELDS | _OF_CHAT}
        own = {name: value for name, value in known.items() if name not in [f"{kind}s" for kind in MEDIA]}
        request = await self._run(build_infer_request, {**own, "messages": conversation.messages})
        downloaded = await download_media(conversation.media, limits, self.downloads)
        first = len(media.images), len(media.videos), len(media.audios)
        await self._run(load_media, conversation.media, limits, downloaded, media)
        set_media(request, media.images[first[0] :], media.videos[first[1] :], media.audios[first[2] :])
        request.sizes = media.sizes[first[0] :]
        return request

    async def _run(self, function: Callable, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *arguments)

    def _refuse(self, status: int, reason: str) -> Response:
        return self.server.create_error_response(status, reason)

    @contextlib.contextmanager
    def _admit(self) -> Iterator[None]:
        """Count a request in progress; raises RequestRefused if there are too many."""
        most = self.settings.max_active_requests
        if self.active >= most:
            raise RequestRefused(f"server: got {most} requests in progress, expected fewer: try again later", _BUSY)
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1


_OF_CHAT = frozenset({"model", "tool_choice", "max_completion_tokens"})


def add_routes(server: Any) -> None:
    """Replace the functions of ms-swift's routes that take input.

    Args:
        server: `SwiftDeploy` with ms-swift's own routes.
    Raises:
        RuntimeError: ms-swift has other routes than this was written for.
    """
    desk = server.himtok_desk = RequestDesk(server)

    async def chat(raw: Request) -> Any:
        async def answer(body: dict[str, Any], media: LoadedMedia) -> Any:
            return await server.create_chat_completion(await desk.prepare_chat(body, media), raw)

        return await desk.serve(raw, answer)

    def complete(text_field: str) -> Callable:
        async def complete_text(raw: Request) -> Any:
            async def answer(body: dict[str, Any], media: LoadedMedia) -> Any:
                request = await desk.prepare_chat(_as_chat(body, text_field), media)
                return await server.create_chat_completion(request, raw, return_cmpl_response=True)

            return await desk.serve(raw, answer)

        return complete_text

    async def infer(raw: Request) -> Any:
        async def answer(body: dict[str, Any], media: LoadedMedia) -> Any:
            requests, config = await desk.prepare_batch(body, media)
            answers = await asyncio.gather(
                *(server.infer_async(each, config) for each in requests), return_exceptions=True
            )
            for i, each in enumerate(answers):
                with _named(f"infer_requests[{i}]"):
                    if isinstance(each, BaseException):
                        raise each
            return answers

        return await desk.serve(raw, answer)

    own = {
        "/v1/chat/completions": chat,
        "/v1/completions": complete("prompt"),
        "/v1/embeddings": complete("input"),
        "/infer/": infer,
    }
    routes = server.app.router.routes
    replaced = [route for route in routes if getattr(route, "path", None) in own]
    if len(replaced) != len(own):
        raise RuntimeError(f"SwiftDeploy: got the routes {[route.path for route in replaced]}, expected {list(own)}")
    for route in replaced:
        routes.remove(route)
    for path, function in own.items():
        server.app.post(path, response_model=None)(function)


def _as_chat(body: dict[str, Any], text_field: str) -> dict[str, Any]:
    """Convert a request to complete or embed a text to a chat request."""
    rest = dict(body)
    text = rest.pop(text_field, None)
    if isinstance(text, list) and len(text) == 1:
        text = text[0]
    if not isinstance(text, str):
        raise RequestRefused(f"{text_field}: got {abridged(text)}, expected a text")
    if "messages" in rest:
        raise RequestRefused(f"messages: got messages beside {text_field}, expected one of both")
    return {**rest, "messages": [{"role": "user", "content": text}]}


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except RequestRefused as error:
        raise RequestRefused(_prepend(name, str(error)), error.status) from error
    except Exception as error:
        raise RequestRefused(_prepend(name, str(explain_error(error)))) from error


def _prepend(name: str, reason: str) -> str:
    """Put the name of an object before a reason, which begins with the name of a field or with what the object is."""
    return f"{name}: {reason}" if reason.startswith("got ") else f"{name}.{reason}"


async def _answer_while_connected(raw: Request, answer: Coroutine) -> Any:
    """Await an answer, or cancel it when the client goes away."""
    answering = asyncio.ensure_future(answer)
    watching = asyncio.ensure_future(_wait_until_gone(raw))
    try:
        await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            answering.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await answering
            return Response(status_code=_CLOSED)
        return answering.result()
    finally:
        answering.cancel()
        watching.cancel()


async def _wait_until_gone(raw: Request) -> None:
    while (await raw.receive())["type"] != "http.disconnect":
        pass


class _EndingStream(StreamingResponse):
    """A stream that releases what it holds when it ends, also if its client goes away before it begins."""

    def __init__(self, stream: StreamingResponse, end: contextlib.ExitStack):
        self.__dict__.update(stream.__dict__)
        self._end = end

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end.close()
            close = getattr(self.body_iterator, "aclose", None)
            if close is not None:
                await close()
