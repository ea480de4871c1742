"""Reads added tokens, their ids and the roles of tokens from the files of a text tokenizer.

`read_added_tokens` and `read_named_tokens` read added_tokens.json, special_tokens_map.json and tokenizer_config.json,
and tokenizer.json in a folder that holds only a fast tokenizer. Mask, box and ref tokens become *non-special*, because
servers strip special tokens from their answers. Errors name the file and the field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from himtok_plugin.checkpoints.json_files import read_optional_json_object
from himtok_plugin.mask_text import MASK_TOKEN_PREFIX

ANSWER_TOKENS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
SENTENCEPIECE_FILE, VOCABULARY_FILE, MERGES_FILE, FAST_FILE = (
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
)
SETTINGS_FILE, SPECIAL_FILE, ADDED_FILE = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"


def read_added_tokens(folder: Path) -> dict[int, AddedToken]:
    """Read the tokens that were added to the trained vocabulary: id -> token.

    Raises:
        ValueError: an entry is invalid, or two files or entries contradict each other.
    """
    found: dict[int, AddedToken] = {}
    origin: dict[int, str] = {}
    for file, token_id, text, fields in _read_token_entries(folder):
        if token_id in found and found[token_id].content != text:
            raise ValueError(
                f"{folder}: id {token_id} is {found[token_id].content!r} in {origin[token_id]} and {text!r} in {file}, "
                "expected the same"
            )
        found[token_id], origin[token_id] = _build_token(text, fields), file
    texts = [token.content for token in found.values()]
    twice = sorted({text for text in texts if texts.count(text) > 1}) if len(set(texts)) < len(texts) else []
    if twice:
        raise ValueError(f"{folder}: added tokens {twice} have several ids, expected one each")
    return found


def read_named_tokens(folder: Path) -> dict[str, str]:
    """Read the tokens of `NAMED_TOKENS` that the files define: name -> text."""
    special, settings = read_optional_json_object(folder / SPECIAL_FILE), read_tokenizer_settings(folder)
    found: dict[str, str] = {}
    for name in NAMED_TOKENS:
        for file, tokens in ((SPECIAL_FILE, special), (SETTINGS_FILE, settings)):
            if tokens.get(name):
                found[name] = _get_token_text(tokens[name], folder / file, name)
    return found


def read_tokenizer_settings(folder: Path) -> dict[str, Any]:
    """Read tokenizer_config.json; return an empty object if it is missing."""
    return read_optional_json_object(folder / SETTINGS_FILE)


def has_slow_tokenizer(folder: Path) -> bool:
    """Return whether the folder holds the files of a slow tokenizer."""
    qwen2 = all((folder / name).is_file() for name in (VOCABULARY_FILE, MERGES_FILE))
    return qwen2 or (folder / SENTENCEPIECE_FILE).is_file()


def parse_token_id(value: Any, file: Path, field: str) -> int:
    """Parse a token id from a file, a number or a string of digits.

    Args:
        value: the value.
        file, field: where it was found, for the error.
    Raises:
        ValueError: it is neither.
    """
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"{file}: {field}: got {value!r}, expected a token id")
    return number


def _read_token_entries(folder: Path) -> Iterator[tuple[str, int, str, Mapping[str, Any]]]:
    """Yield every entry about an added token: file, id, text, other fields. The last entry of an id is valid."""
    file = folder / SPECIAL_FILE
    special = read_optional_json_object(file)
    listed = special.get("additional_special_tokens") or []
    if not isinstance(listed, list):
        raise ValueError(f"{file}: additional_special_tokens: got {listed!r}, expected a list")
    names = {_get_token_text(token, file, "additional_special_tokens") for token in listed}
    names |= {_get_token_text(special[name], file, name) for name in NAMED_TOKENS if special.get(name)}
    for text, token_id in read_optional_json_object(folder / ADDED_FILE).items():
        yield ADDED_FILE, parse_token_id(token_id, folder / ADDED_FILE, text), text, {"special": text in names}
    if not has_slow_tokenizer(folder):
        entries = read_optional_json_object(folder / FAST_FILE).get("added_tokens") or []
        if not isinstance(entries, list):
            raise ValueError(f"{folder / FAST_FILE}: added_tokens: got a {type(entries).__name__}, expected a list")
        for entry in entries:
            text = _get_content(entry, folder / FAST_FILE, "added_tokens")
            yield FAST_FILE, parse_token_id(entry.get("id"), folder / FAST_FILE, text), text, entry
    file = folder / SETTINGS_FILE
    entries = read_tokenizer_settings(folder).get("added_tokens_decoder") or {}
    if not isinstance(entries, dict):
        raise ValueError(f"{file}: added_tokens_decoder: got a {type(entries).__name__}, expected an object")
    for key, entry in entries.items():
        token_id = parse_token_id(key, file, "added_tokens_decoder")
        yield SETTINGS_FILE, token_id, _get_content(entry, file, f"added_tokens_decoder.{key}"), entry


def _build_token(text: str, fields: Mapping[str, Any]) -> AddedToken:
    is_in_answers = text.startswith(MASK_TOKEN_PREFIX) or text in ANSWER_TOKENS
    return AddedToken(
        text,
        special=not is_in_answers and bool(fields.get("special")),
        lstrip=bool(fields.get("lstrip")),
        rstrip=bool(fields.get("rstrip")),
        single_word=bool(fields.get("single_word")),
        normalized=False,
    )


def _get_token_text(token: Any, file: Path, field: str) -> str:
    return token if isinstance(token, str) else _get_content(token, file, field)


def _get_content(entry: Any, file: Path, field: str) -> str:
    text = entry.get("content") if isinstance(entry, Mapping) else None
    if not isinstance(text, str):
        raise ValueError(f"{file}: {field}: got {entry!r}, expected an object whose content is the token's text")
    return text
