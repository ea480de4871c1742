"""Requests to `swift deploy` in ms-swift's classes, with `masks`, `mask_previews` and `preview_side`.

Contract: `build_chat_request` and `build_infer_request` convert the JSON of a request whose messages and media have
been read. Clients can leave out what has a default, or send null for it. A field that no server of this kind knows is
refused, because it would have no effect.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal

from PIL import Image
from pydantic import TypeAdapter, ValidationError
from swift.infer_engine import InferRequest, RequestConfig
from swift.infer_engine.protocol import ChatCompletionRequest

_LONGEST_REASON = 200  # characters
# Fields of OpenAI's API that change nothing here, or only what a client does with the answer.
_IGNORED_FIELDS = frozenset(
    "user metadata store service_tier stream_options parallel_tool_calls safety_identifier prompt_cache_key "
    "prompt_cache_retention prediction verbosity reasoning_effort encoding_format dimensions".split()
)
# Fields of the APIs of OpenAI and vLLM that are accepted with the values that change nothing.
_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "echo": (False,),
    "suffix": ("",),
    "skip_special_tokens": (False,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "stop_token_ids": ([],),
    "ignore_eos": (False,),
    "min_tokens": (0,),
    "use_beam_search": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}


@dataclass
class SegmentInferRequest(InferRequest):
    """A request to the engine. Templates find the additional fields in `extra_kwargs`.

    Attributes:
        images: see `request_media.LoadedMedia`.
        masks, mask_previews, preview_side: see `SegmentChatRequest`.
        sizes: (h, w) of each image, read from its header.
        is_abandoned: whether nobody waits for the answer any more.
    """

    images: list[Any] = field(default_factory=list)
    masks: list[Any] = field(default_factory=list)
    mask_previews: list[int] | Literal["all"] | None = None
    preview_side: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sizes: list[tuple[int, int]] | None = None
        self.is_abandoned = False

    def to_printable(self) -> dict[str, Any]:
        """The request without the content of its media, for logs."""
        names = [field.name for field in fields(self)]
        return self._to_printable(_describe_bytes({name: getattr(self, name) for name in names}))


@dataclass
class SegmentChatRequest(ChatCompletionRequest):
    """A client's chat request. With the `openai` package, `extra_body` sets the additional fields.

    Attributes:
        masks: one COCO RLE for every `<mask>` in the messages, of the first image's size.
        mask_previews: numbers of mask tokens after which a stream previews a mask, or "all"; None: the server's
            --mask_previews.
        preview_side: maximum height and width of previews in pixels; None: those of the image.
    """

    masks: list[Any] = field(default_factory=list)
    mask_previews: list[int] | Literal["all"] | None = None
    preview_side: int | None = None

    def parse(self) -> tuple[InferRequest, RequestConfig]:
        """Split the request into the one to the engine and the parameters of generation."""
        config = RequestConfig(**{each.name: getattr(self, each.name) for each in fields(RequestConfig)})
        ready = self.__dict__.get("himtok_ready")
        if ready is not None:
            return ready, config
        names = [each.name for each in fields(SegmentInferRequest)]
        return SegmentInferRequest(**{name: getattr(self, name) for name in names}), config


def build_chat_request(body: Mapping[str, Any]) -> SegmentChatRequest:
    """Build a chat request from JSON without media, whose messages have texts as content.

    Raises:
        ValueError: a field is unknown or has a wrong type.
    """
    return _build(SegmentChatRequest, _rename_fields(body), "")


def build_infer_request(body: Mapping[str, Any], name: str = "") -> SegmentInferRequest:
    """Build a request to the engine; see `build_chat_request`. `name` comes before the fields in messages."""
    kept = {key: value for key, value in body.items() if key not in ("data_dict", "uuid", "add_eos")}  # of rollouts
    return _build(SegmentInferRequest, kept, name)


def build_config(body: Any) -> RequestConfig:
    """Build the parameters of generation from the field `request_config` of a request to `/infer/`."""
    if not isinstance(body, dict | None):
        raise ValueError(f"request_config: got a {type(body).__name__}, expected an object")
    return _build(RequestConfig, _rename_fields(body or {}), "request_config.")


def set_media(request: InferRequest, images: list[Any], videos: list[Any], audios: list[Any]) -> None:
    """Give a request its media as bytes or files, which the checks of ms-swift's classes do not take."""
    request.images, request.videos, request.audios = images, videos, audios


def summarize_validation_errors(errors: Sequence[Mapping[str, Any]], prefix: str = "") -> str:
    """Join pydantic's error messages about a request, without quoting the request."""
    return "; ".join(
        f"{prefix}{'.'.join(map(str, error['loc'])) or 'request'}: {error['msg']:.{_LONGEST_REASON}}"
        for error in errors[:3]
    )


def shorten_reason(error: BaseException) -> str:
    """Describe an error in one line of limited length: messages of PIL and base64 can quote all the data."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text:.{_LONGEST_REASON}}" if text else type(error).__name__


def _rename_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """Accept what OpenAI's API has under another name or in another form."""
    renamed = dict(body)
    newer = renamed.pop("max_completion_tokens", None)
    if newer is not None:
        older = renamed.get("max_tokens")
        if older is not None and older != newer:
            raise ValueError(f"max_completion_tokens: got {newer!r:.20} beside max_tokens {older!r:.20}, expected one")
        renamed["max_tokens"] = newer
    if isinstance(renamed.get("stop"), str):
        renamed["stop"] = [renamed["stop"]]
    return renamed


def _build(kind: type, body: Mapping[str, Any], prefix: str) -> Any:
    known = {each.name for each in fields(kind)}
    given = {}
    for name, value in body.items():
        if value is None:
            continue
        if name in known:
            given[name] = value
        elif name not in _IGNORED_FIELDS and value not in _NEUTRAL_VALUES.get(name, ()):
            close = difflib.get_close_matches(name, known, 1)
            expected = "only the value that changes nothing" if name in _NEUTRAL_VALUES else "a field that exists"
            hint = f": {close[0]}?" if close and name not in _NEUTRAL_VALUES else ""
            raise ValueError(f"{prefix}{name:.80}: got a field without effect here, expected {expected}{hint}")
    try:
        return _adapter(kind).validate_python(given)
    except ValidationError as error:
        raise ValueError(summarize_validation_errors(error.errors(include_url=False), prefix)) from error
    except (AttributeError, AssertionError, KeyError, IndexError, TypeError) as error:  # in ms-swift's own checks
        raise ValueError(f"{prefix}request: {shorten_reason(error)}: expected the fields of a chat request") from error


@cache
def _adapter(kind: type) -> TypeAdapter:
    return TypeAdapter(kind)


def _describe_bytes(value: Any) -> Any:
    if isinstance(value, bytes):
        try:
            with Image.open(io.BytesIO(value)) as image:
                return f"<{image.format} of {image.width} x {image.height} pixels>"
        except Exception:  # a video or an audio
            return f"<{len(value)} bytes>"
    if isinstance(value, list):
        return [_describe_bytes(each) for each in value]
    if isinstance(value, dict):
        return {key: _describe_bytes(each) for key, each in value.items()}
    return value
