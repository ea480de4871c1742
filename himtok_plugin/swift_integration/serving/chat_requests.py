"""Chat requests to `swift deploy` with masks: ms-swift's request with the fields `masks` and `mask_previews`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from swift.infer_engine import InferRequest, RequestConfig
from swift.infer_engine.protocol import ChatCompletionRequest

_LONGEST_REASON = 200  # characters


@dataclass
class SegmentInferRequest(InferRequest):
    """A request to the engine. Templates find the additional fields in `extra_kwargs`."""

    masks: list[Any] = field(default_factory=list)
    mask_previews: list[int] | None = None


@dataclass
class SegmentChatRequest(ChatCompletionRequest):
    """A client's chat request. With the `openai` package, `extra_body` sets the additional fields.

    Attributes:
        masks: one COCO RLE for every `<mask>` in the messages, of the first image's size.
        mask_previews: numbers of mask tokens after which a stream previews a mask; None: the server's --mask_previews.
    """

    masks: list[Any] = field(default_factory=list)
    mask_previews: list[int] | None = None

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except (AttributeError, KeyError, TypeError) as error:  # the client sees the text of a ValueError only
            raise ValueError(f"messages: {shorten_reason(error)}: expected messages with role and content") from error

    def parse(self) -> tuple[SegmentInferRequest, RequestConfig]:
        """Split the request into the one to the engine and the parameters of generation."""
        request, config = super().parse()
        return SegmentInferRequest(**vars(request), masks=self.masks, mask_previews=self.mask_previews), config


def summarize_validation_errors(errors: Sequence[Mapping[str, Any]]) -> str:
    """Join pydantic's error messages about a request, without quoting the request."""
    return "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']:.{_LONGEST_REASON}}" for error in errors[:3])


def shorten_reason(error: Exception) -> str:
    """Describe an error in one line of limited length: messages of PIL and base64 can quote all the data."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.{_LONGEST_REASON}}"
