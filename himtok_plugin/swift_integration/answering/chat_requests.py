"""Requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from swift.infer_engine import InferRequest, RequestConfig
from swift.infer_engine.protocol import ChatCompletionRequest

_LONGEST_REASON = 200  # characters


@dataclass
class SegmentInferRequest(InferRequest):
    """What goes to the engine; templates find the further fields in `extra_kwargs`."""

    masks: list[Any] = field(default_factory=list)
    mask_previews: list[int] | None = None


@dataclass
class SegmentChatRequest(ChatCompletionRequest):
    """A chat request as clients send it; `extra_body` of the `openai` package holds the further fields.

    Attributes:
        masks: one COCO RLE for every `<mask>` in the messages, of the first image's size.
        mask_previews: numbers of tokens after which a stream previews a mask; None: as the server's flag says.
    """

    masks: list[Any] = field(default_factory=list)
    mask_previews: list[int] | None = None

    def __post_init__(self):
        try:
            super().__post_init__()
        except (AttributeError, KeyError, TypeError) as error:  # only a ValueError is told to the client
            raise ValueError(f"messages: {_reason(error)}: expected messages with role and content") from error

    def parse(self) -> tuple[SegmentInferRequest, RequestConfig]:
        request, config = super().parse()
        return SegmentInferRequest(**vars(request), masks=self.masks, mask_previews=self.mask_previews), config


def summarize_validation_errors(errors: Sequence[Mapping[str, Any]]) -> str:
    """What pydantic has against a request, without the request."""
    return "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']:.{_LONGEST_REASON}}" for error in errors[:3])


def _reason(error: Exception) -> str:
    """One line of bounded length: PIL and base64 like to quote the data."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.{_LONGEST_REASON}}"
