"""`MaskClient`: questions about images to a server, and its answers as they come.

Contract: `ask` streams. Each `AnswerUpdate` holds the whole answer so far, so that a caller can draw any of them and
leave out others. Whatever goes wrong is a `ClientError` with one sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from himtok_plugin.mask_text import IMAGE_PLACEHOLDER

from .request_images import ImageSource, to_image_url

if TYPE_CHECKING:
    from openai import OpenAI

ALL_PREVIEWS = "all"
NO_KEY = "EMPTY"  # what clients send by convention to a server without a key; the library demands one
CONNECT_SECONDS, READY_SECONDS = 10.0, 5.0
ANSWER_SECONDS = 600.0  # between two parts of an answer; a busy server queues requests
_LONGEST_REASON = 500  # characters


class ClientError(ValueError):
    """The server has refused a request, or the answer was cut off."""


class ServerUnreachableError(ClientError):
    """Nothing answers at the address: the server has not started, or its model is still loading."""


@dataclass(frozen=True)
class AnswerUpdate:
    """An answer so far.

    Attributes:
        text: as generated, mask tokens included.
        segments: of the masks that are closed, in order, as servers send them (docs/serving.md).
        preview: segment of the mask that is being written, after the tokens so far; None between masks, and after
            numbers of tokens for which no preview was asked.
        finished: whether nothing more comes.
        is_cut: whether the answer has reached its maximum number of tokens.
        unknown_words: words of the question that no question of the model's training had (`words.known_words`).
    """

    text: str = ""
    segments: list[dict[str, Any]] = field(default_factory=list)
    preview: dict[str, Any] | None = None
    finished: bool = False
    is_cut: bool = False
    unknown_words: list[str] = field(default_factory=list)


class MaskClient:
    """A server of `swift deploy --plugin himtok`. Several threads can share a client.

    Args:
        base_url: its address, such as `http://127.0.0.1:8000/v1`; without a path, `/v1` is added.
        api_key: its key; None if it needs none.
        model: name of the model to ask; None: the first that the server lists.
    Raises:
        ValueError: `base_url` is no http or https address.
    """

    def __init__(self, base_url: str, api_key: str | None = None, model: str | None = None):
        self.base_url = complete_address(base_url)
        self.api_key = api_key
        self._model = model

    @cached_property
    def _openai(self) -> OpenAI:
        import openai

        # The environment's proxies are for the internet, and a key of the environment is OpenAI's.
        transport = openai.DefaultHttpxClient(trust_env=False)
        timeout = openai.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        key = self.api_key or NO_KEY
        return openai.OpenAI(base_url=self.base_url, api_key=key, max_retries=0, timeout=timeout, http_client=transport)

    def is_ready(self) -> bool:
        """Whether the server answers; its model has then been loaded.

        Raises:
            ClientError: it answers with an error, for example because of a wrong key.
        """
        try:
            self._list_models()
        except ServerUnreachableError:
            return False
        return True

    def model_name(self) -> str:
        """The name of the model that is asked.

        Raises:
            ClientError: the server cannot be reached, or lists no model.
        """
        if self._model is None:
            names = self._list_models()
            if not names:
                raise ClientError(f"{self.base_url}: lists no models, expected a server of `swift deploy`")
            self._model = names[0]
        return self._model

    def ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[ImageSource],
        masks: Sequence[Mapping[str, Any]] = (),
        max_tokens: int | None = None,
        previews: Sequence[int] | Literal["all"] = (),
        preview_side: int | None = None,
        temperature: float | None = None,
    ) -> Iterator[AnswerUpdate]:
        """Ask a question, and yield the answer as it comes.

        Args:
            messages: the conversation: texts with their roles, the question last. Images stand before the first
                question, or where the texts have `<image>`.
            images: of the conversation. Masks belong to the first one, upright.
            masks: COCO RLE of the first image's size, one for each `<mask>` in the messages.
            max_tokens: of the answer; None: the server's default.
            previews: numbers of tokens after which to preview a mask, or "all".
            preview_side: previews are at most this number of pixels wide and high; None: of the image's size.
            temperature: of sampling; None: the server's default.
        Yields:
            The answer so far; the last update is finished.
        Raises:
            ServerUnreachableError: nothing answers.
            ClientError: the server refuses the request, with its reason; or the answer breaks off.
            ValueError: an image cannot be read, or the messages have another number of `<image>`.
        """
        request: dict[str, Any] = {
            "model": self.model_name(),
            "messages": add_images(messages, [to_image_url(image) for image in images]),
            "stream": True,
        }
        options = {"max_tokens": max_tokens, "temperature": temperature}
        request.update({name: value for name, value in options.items() if value is not None})
        body = {
            "masks": [dict(mask) for mask in masks],
            "mask_previews": previews if previews == ALL_PREVIEWS else list(previews),
            "preview_side": preview_side,
        }
        request["extra_body"] = {name: value for name, value in body.items() if value}
        with self._in_sentences():
            chunks = self._openai.chat.completions.create(**request)
            with chunks:
                yield from _collect_answer(chunks)

    def _list_models(self) -> list[str]:
        with self._in_sentences():
            return [model.id for model in self._openai.models.list(timeout=READY_SECONDS).data]

    @contextmanager
    def _in_sentences(self) -> Iterator[None]:
        """Raise errors of the connection as `ClientError`."""
        import openai

        try:
            yield
        except openai.APITimeoutError as error:
            raise ServerUnreachableError(f"{self.base_url}: the server did not answer in time") from error
        except openai.APIConnectionError as error:
            reason = f"{error.__cause__ or error}"
            raise ServerUnreachableError(
                f"{self.base_url}: no server answers ({reason:.200}), expected `swift deploy --plugin himtok` there"
            ) from error
        except openai.APIStatusError as error:
            raise ClientError(_find_reason(error)) from error
        except Exception as error:
            # The library passes on errors of its HTTP client, which is httpx or httpx2, while an answer is read.
            if not isinstance(error, openai.APIError) and not type(error).__module__.startswith("httpx"):
                raise
            raise ClientError(f"the answer broke off: {str(error) or type(error).__name__:.200}") from error


def _collect_answer(chunks: Any) -> Iterator[AnswerUpdate]:
    text = ""
    segments: list[dict[str, Any]] = []
    unknown_words: list[str] = []
    reason = None
    for chunk in chunks:
        if not chunk.choices:  # the usage, which some servers send last
            continue
        choice = chunk.choices[0]
        delta = choice.delta
        text += delta.content or ""
        segments = [*segments, *(getattr(delta, "segments", None) or [])]
        unknown_words = unknown_words or list(getattr(delta, "unknown_words", None) or [])
        previews = getattr(delta, "previews", None) or [None]
        reason = choice.finish_reason or reason
        yield AnswerUpdate(text, segments, previews[-1], unknown_words=unknown_words)
    if reason is None:
        raise ClientError("the answer broke off: the server has closed the connection")
    yield AnswerUpdate(text, segments, None, True, reason == "length", unknown_words)


def add_images(messages: Sequence[Mapping[str, Any]], urls: Sequence[str]) -> list[dict[str, Any]]:
    """Put images into messages whose contents are texts: where they have `<image>`, or before the first question.

    Raises:
        ValueError: there are placeholders, but not one for each image; or there is no question.
    """
    parts = [re.split(re.escape(IMAGE_PLACEHOLDER), message["content"]) for message in messages]
    places = sum(len(texts) - 1 for texts in parts)
    if places not in (0, len(urls)):
        raise ValueError(
            f"messages: got {places} {IMAGE_PLACEHOLDER} for {len(urls)} images, expected one for each or none"
        )
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
    if first is None:
        raise ValueError("messages: got no message of the user, expected a question")
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    result = []
    for i, (message, texts) in enumerate(zip(messages, parts, strict=True)):
        content: list[dict[str, Any]] = images if not places and i == first else []
        for j, text in enumerate(texts):
            content = [*content, *([images.pop(0)] if j else []), *([{"type": "text", "text": text}] if text else [])]
        is_text = len(texts) == 1 and not (not places and i == first and images)
        result.append({**message, "content": message["content"] if is_text else content})
    return result


def complete_address(base_url: str) -> str:
    """Return the address of a server's API: `http://host:8000` is `http://host:8000/v1`.

    Raises:
        ValueError: no http or https address.
    """
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", base_url, re.IGNORECASE):
        raise ValueError(f"base_url: got {base_url!r}, expected an address such as http://127.0.0.1:8000/v1")
    has_path = base_url.rstrip("/").count("/") > 2
    return base_url.rstrip("/") if has_path else base_url.rstrip("/") + "/v1"


def _find_reason(error: Any) -> str:
    """The sentence of a server's error: ms-swift sends `message`, OpenAI's servers send it within `error`."""
    body = error.body
    while isinstance(body, Mapping) and isinstance(body.get("error"), Mapping | str):
        body = body["error"]
    text = body.get("message") if isinstance(body, Mapping) else body
    text = " ".join(str(text).split()) if text else ""
    return text[:_LONGEST_REASON] or f"the server has answered with status {error.status_code}"
