"""Checks of a request's masks, and the request that the engine gets, from a client's JSON.

Contract: `read_conversation` and `load_request_media` together make everything that a template reads from a request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from himtok_plugin.mask_text import MASK_PLACEHOLDER, count_placeholders
from himtok_plugin.masks import load_mask
from himtok_plugin.swift_integration.model.mask_runtime import MaskRuntime
from himtok_plugin.swift_integration.options.arguments import HimTokArguments
from himtok_plugin.validation import abridged

from .chat_requests import SegmentInferRequest
from .message_texts import (
    MEDIA,
    TAGS,
    Conversation,
    check_length,
    check_media_tokens,
    check_tags,
    read_messages,
    read_sources,
)
from .tools_and_objects import check_objects, check_tools

_RLE_KEYS = {"size", "counts"}  # neither paths, which are the server's files, nor polygons, which can take long to draw


@dataclass(frozen=True)
class RequestImage:
    """A request's first image in ms-swift's form, and its size (h, w). The masks of the answer belong to it."""

    source: Any
    size: tuple[int, int]


def read_conversation(
    body: Mapping[str, Any], media_tokens: Iterable[str], max_characters: int | None = None
) -> Conversation:
    """Read the messages and media of a request.

    Args:
        body: the request's JSON.
        media_tokens: see `message_texts.find_media_tokens`; none for a model that reads texts only.
        max_characters: see `message_texts.count_characters`; None: no limit.
    Raises:
        ValueError: a message or a medium is bad, or a text would be taken for a medium.
    """
    check_tools(body.get("tools"), body.get("tool_choice"))
    check_objects(body.get("objects"))
    conversation = read_messages(body.get("messages"))
    for kind in MEDIA:
        beside = read_sources(body.get(f"{kind}s"), kind)
        inside = conversation.media[kind]
        if beside and inside:
            raise ValueError(f"{kind}s: got {len(beside)} beside {len(inside)} in the messages, expected one of both")
        conversation.media[kind] = inside or beside
    if max_characters is not None:
        check_length([conversation.messages, body.get("tools"), body.get("objects")], max_characters)
    if media_tokens:
        check_tags(conversation)
        # Some models have a token of the name of a tag. In messages, tags have been counted.
        check_media_tokens(conversation.messages, set(media_tokens) - set(TAGS.values()))
        for name in ("tools", "objects", "chat_template_kwargs"):
            check_media_tokens(body.get(name), media_tokens)
    return conversation


def check_masks(request: SegmentInferRequest, settings: HimTokArguments) -> None:
    """Check a request's masks. Nothing large is allocated for a request beyond the limits.

    Args:
        request: with the sizes of its images.
        settings: the server's options.
    Raises:
        ValueError: a mask is bad, or there are too many or too few.
    """
    masks, sizes = request.masks, request.sizes or []
    texts = [message["content"] for message in request.messages if isinstance(message.get("content"), str)]
    placeholders = sum(count_placeholders(text) for text in texts)
    if len(masks) > settings.max_request_masks:
        raise ValueError(f"masks: got {len(masks)}, expected at most {settings.max_request_masks}")
    if len(masks) != placeholders:
        raise ValueError(
            f"masks: got {len(masks)}, expected {placeholders}, one for each {MASK_PLACEHOLDER} in the messages"
        )
    if masks and not sizes:
        raise ValueError("masks: got no image, expected the image that the masks belong to")
    for i, mask in enumerate(masks):
        _check_mask(mask, sizes[0], f"masks[{i}]")


def resolve_previews(previews: list[int] | str | None, runtime: MaskRuntime) -> list[int]:
    """Return a request's numbers of mask tokens after which to preview a mask; None takes those of the server.

    Args:
        previews: the numbers, or "all".
        runtime: the run's masks.
    Raises:
        ValueError: a number exceeds the mask tokens of a mask, or is below 1.
    """
    if previews is None:
        return runtime.settings.mask_previews
    limit = runtime.num_mask_tokens
    if isinstance(previews, str):
        return list(range(1, limit + 1))
    wrong = next((n for n in previews if not 1 <= n <= limit), None)
    if wrong is not None:
        raise ValueError(f"mask_previews: got {abridged(wrong)}, expected numbers of tokens from 1 to {limit}")
    return previews


def _check_mask(mask: Any, size: tuple[int, int], name: str) -> None:
    if not isinstance(mask, dict) or set(mask) != _RLE_KEYS:
        raise ValueError(f"{name}: got {abridged(mask)}, expected a COCO RLE {{'size': [h, w], 'counts': …}}")
    if mask["size"] != list(size):  # before a mask of that size is allocated
        raise ValueError(f"{name}: got size {abridged(mask['size'])}, expected {list(size)}, the first image's [h, w]")
    try:
        load_mask(mask, size)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{name}: {error!s:.300}") from error
