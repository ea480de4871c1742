"""Messages of a request in one form: texts with ms-swift's tags, such as `<image>`, and the media that they stand for.

Clients write a message's content as a text or as a list of parts, in any role, as OpenAI's servers take it. ms-swift
knows lists of parts in some roles only, and templates know no role `developer`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from himtok_plugin.validation import abridged

from .tools_and_objects import check_tool_calls

MEDIA = ("image", "video", "audio")
TAGS = {kind: f"<{kind}>" for kind in MEDIA}  # ms-swift's, for the place of a medium in a text
ROLES = ("system", "developer", "user", "assistant", "tool", "tool_call", "tool_response")
_SYSTEM_ROLES = ("system", "developer")
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}  # type -> key
_MEDIA_PARTS = {name: kind for kind in MEDIA for name in (kind, f"{kind}_url", f"input_{kind}")}
_PARTS = {**_TEXT_PARTS, **_MEDIA_PARTS}
_SOURCE_KEYS = ("url", "bytes", "data", "path")
_KEPT_KEYS = ("role", "content", "tool_calls", "tool_call_id")
# In a text without images, ms-swift reads FILE in <img>FILE</img> from its own disk.
_FILE_IN_TEXT = re.compile(r"<img>.+?</img>", re.DOTALL)
_MEDIA_TOKEN_KEY = re.compile(r"(image|img|video|audio|vision|media).*token.*(id|index)$")


@dataclass
class Conversation:
    """Messages with texts as content, and the sources of their media by kind, in order."""

    messages: list[dict[str, Any]]
    media: dict[str, list[Any]] = field(default_factory=lambda: {kind: [] for kind in MEDIA})


def read_messages(messages: Any) -> Conversation:
    """Convert the messages of a request.

    System messages at the beginning are joined to one.

    Raises:
        ValueError: no messages, or one has an unknown role or content.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"messages: got {abridged(messages)}, expected a list of at least one message")
    conversation = Conversation([])
    system: list[str] = []
    for i, message in enumerate(messages):
        name = f"messages[{i}]"
        if not isinstance(message, dict):
            raise ValueError(f"{name}: got {abridged(message)}, expected an object with role and content")
        role = message.get("role")
        if role not in ROLES:
            raise ValueError(f"{name}.role: got {abridged(role)}, expected one of {', '.join(ROLES)}")
        check_tool_calls(message.get("tool_calls"), f"{name}.tool_calls")
        text = _read_content(message, name, conversation)
        if role in _SYSTEM_ROLES:
            if conversation.messages:
                raise ValueError(f"{name}.role: got {role!r} after another role, expected it in the first messages")
            system.append(text)
            continue
        kept = {key: message[key] for key in _KEPT_KEYS if message.get(key) is not None}
        conversation.messages.append({**kept, "content": text})
    if not conversation.messages:
        raise ValueError("messages: got system messages only, expected one with the role 'user'")
    if system:
        conversation.messages.insert(0, {"role": "system", "content": "\n".join(system)})
    return conversation


def read_sources(value: Any, kind: str) -> list[Any]:
    """Return the media in a field `images`, `videos` or `audios`: one source or a list of them.

    Args:
        value: of the field.
        kind: one of `MEDIA`.

    Raises:
        ValueError: something else.
    """
    name = f"{kind}s"
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [_read_source(each, f"{name}[{i}]", kind) for i, each in enumerate(values)]


def check_tags(conversation: Conversation) -> None:
    """Check that every tag such as `<image>` stands for a medium, and that no text names a file of the server.

    Raises:
        ValueError: more tags than media, or `<img>FILE</img>`.
    """
    texts = [message["content"] for message in conversation.messages]
    for kind in MEDIA:
        tags, media = sum(text.count(TAGS[kind]) for text in texts), len(conversation.media[kind])
        if tags > media:
            raise ValueError(f"messages: got {tags} <{kind}>, expected at most {media}, one for each {kind}")
    if any(_FILE_IN_TEXT.search(text) for text in texts):
        raise ValueError("messages: got <img>…</img>, expected images as parts of the content, or in the field images")


def find_media_tokens(template: Any) -> frozenset[str]:
    """Find the tokens of a model that stand for a piece of an image, a video or an audio.

    A text with one of them would be taken for a prompt with further images.

    Args:
        template: ms-swift's template of a loaded model.
    """
    ids = {each for each in template.placeholder_tokens if isinstance(each, int)}
    configuration = template.config.to_dict() if hasattr(template.config, "to_dict") else {}
    ids |= {
        value
        for key, value in _iterate_items(configuration)
        if isinstance(value, int) and not isinstance(value, bool) and _MEDIA_TOKEN_KEY.search(key)
    }
    size = len(template.tokenizer)
    tokens = {template.tokenizer.convert_ids_to_tokens(each) for each in ids if 0 <= each < size}
    return frozenset(token for token in tokens if isinstance(token, str) and len(token) > 1)


def check_media_tokens(value: Any, tokens: Iterable[str]) -> None:
    """Check that no text within a JSON value has one of the tokens.

    Raises:
        ValueError: one has.
    """
    for text in _iterate_texts(value):
        found = next((token for token in tokens if token in text), None)
        if found is not None:
            raise ValueError(
                f"messages: got the token {found!r}, which stands for an image, a video or an audio in this model, "
                "expected texts without it"
            )


def count_characters(tokenizer: Any, max_model_len: int | None) -> int | None:
    """Return the number of characters that no prompt of a model exceeds; None if its length has no limit.

    To find out how many tokens a text of many megabytes has would take minutes.

    Args:
        tokenizer: the model's text tokenizer.
        max_model_len: maximum number of tokens.
    """
    return None if max_model_len is None else max_model_len * max(map(len, tokenizer.get_vocab()), default=1)


def check_length(value: Any, max_characters: int) -> None:
    """Check the number of characters of all texts within a JSON value.

    Raises:
        ValueError: it is above `max_characters`.
    """
    length = sum(map(len, _iterate_texts(value)))
    if length > max_characters:
        raise ValueError(
            f"messages: got {length} characters, expected at most {max_characters}, which the model has room for"
        )


def _iterate_items(configuration: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in configuration.items():
        yield str(key), value
        if isinstance(value, dict):
            yield from _iterate_items(value)


def _iterate_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from _iterate_texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _iterate_texts(each)


def _read_content(message: dict[str, Any], name: str, conversation: Conversation) -> str:
    """Return the text of a message's content, and append its media to the conversation's."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and message.get("tool_calls"):
        return ""
    if not isinstance(content, list) or not content:
        raise ValueError(f"{name}.content: got {abridged(content)}, expected a text or a list of parts")
    text = ""
    for i, part in enumerate(content):
        place = f"{name}.content[{i}]"
        if isinstance(part, str):
            text += part
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in _PARTS:
            known = ", ".join(_PARTS)
            raise ValueError(f"{place}: got {abridged(part)}, expected an object whose type is one of {known}")
        if kind in _TEXT_PARTS:
            words = part.get(_TEXT_PARTS[kind])
            if not isinstance(words, str):
                raise ValueError(f"{place}.{_TEXT_PARTS[kind]}: got {abridged(words)}, expected a text")
            text += words
            continue
        medium = _MEDIA_PARTS[kind]
        value = part.get(kind, part.get(f"{medium}_url", part.get(medium)))
        text += TAGS[medium]
        if value is not None:  # otherwise the part marks the place of one in the field images, videos or audios
            conversation.media[medium].append(_read_source(value, f"{place}.{kind}", medium))
    return text


def _read_source(value: Any, name: str, kind: str) -> Any:
    """Return a medium's URL, base64 or path, or a list of them for the frames of a video."""
    if isinstance(value, list) and kind == "video":
        return [_read_source(each, f"{name}[{i}]", "image") for i, each in enumerate(value)]
    if isinstance(value, dict):
        value = next((value[key] for key in _SOURCE_KEYS if value.get(key) is not None), None)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: got {abridged(value)}, expected a URL or base64")
    return value.strip()
