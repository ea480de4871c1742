"""What the files of a text tokenizer state about its tokens: which were added, at which ids, which have a role.

Contract: `added_tokens` and `named_tokens` read added_tokens.json, special_tokens_map.json and tokenizer_config.json;
of a folder whose only model of text is tokenizer.json, that one as well. Mask, box and ref tokens become *non-special*,
because servers strip special tokens from their answers. What is broken is one error that names file and field. Does not
know models of text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from himtok_plugin.mask_text import MASK_TOKEN_PREFIX

from .source import read_json_object

ANSWER_TOKENS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
SENTENCEPIECE_FILE, VOCABULARY_FILE, MERGES_FILE, FAST_FILE = (
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
)
SETTINGS_FILE, SPECIAL_FILE, ADDED_FILE = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"


def added_tokens(folder: Path) -> dict[int, AddedToken]:
    """Tokens beside the model of text: id -> token.

    Raises:
        ValueError: a broken entry, or two files or entries contradict each other.
    """
    found: dict[int, AddedToken] = {}
    origin: dict[int, str] = {}
    for file, token_id, text, fields in _stated_tokens(folder):
        if token_id in found and found[token_id].content != text:
            raise ValueError(
                f"{folder}: id {token_id} is {found[token_id].content!r} in {origin[token_id]} and {text!r} in {file}, "
                "expected the same"
            )
        found[token_id], origin[token_id] = _token(text, fields), file
    texts = [token.content for token in found.values()]
    twice = sorted({text for text in texts if texts.count(text) > 1}) if len(set(texts)) < len(texts) else []
    if twice:
        raise ValueError(f"{folder}: added tokens {twice} have several ids, expected one each")
    return found


def named_tokens(folder: Path) -> dict[str, str]:
    """Those of `NAMED_TOKENS` that the files state: name -> text."""
    special, settings = _optional_json(folder / SPECIAL_FILE), read_settings(folder)
    found = {}
    for name in NAMED_TOKENS:
        for file, tokens in ((SPECIAL_FILE, special), (SETTINGS_FILE, settings)):
            if tokens.get(name):
                found[name] = _text(tokens[name], folder / file, name)
    return found


def read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, empty where there is none."""
    return _optional_json(folder / SETTINGS_FILE)


def has_model_of_text(folder: Path) -> bool:
    """Whether a tokenizer can be read from the files of a slow one."""
    qwen2 = all((folder / name).is_file() for name in (VOCABULARY_FILE, MERGES_FILE))
    return qwen2 or (folder / SENTENCEPIECE_FILE).is_file()


def check_id(value: Any, file: Path, field: str) -> int:
    """The id of a token that a file states, as a number or in digits; ValueError for anything else."""
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"{file}: {field}: got {value!r}, expected the id of a token")
    return number


def _stated_tokens(folder: Path) -> Iterator[tuple[str, int, str, Mapping[str, Any]]]:
    """Every word of a file about an added token: file, id, text, what else it says; the last one counts."""
    file = folder / SPECIAL_FILE
    special = _optional_json(file)
    listed = special.get("additional_special_tokens") or []
    if not isinstance(listed, list):
        raise ValueError(f"{file}: additional_special_tokens: got {listed!r}, expected a list")
    names = {_text(token, file, "additional_special_tokens") for token in listed}
    names |= {_text(special[name], file, name) for name in NAMED_TOKENS if special.get(name)}
    for text, token_id in _optional_json(folder / ADDED_FILE).items():
        yield ADDED_FILE, check_id(token_id, folder / ADDED_FILE, text), text, {"special": text in names}
    if not has_model_of_text(folder):
        entries = _optional_json(folder / FAST_FILE).get("added_tokens") or []
        if not isinstance(entries, list):
            raise ValueError(f"{folder / FAST_FILE}: added_tokens: got a {type(entries).__name__}, expected a list")
        for entry in entries:
            text = _content(entry, folder / FAST_FILE, "added_tokens")
            yield FAST_FILE, check_id(entry.get("id"), folder / FAST_FILE, text), text, entry
    file = folder / SETTINGS_FILE
    entries = read_settings(folder).get("added_tokens_decoder") or {}
    if not isinstance(entries, dict):
        raise ValueError(f"{file}: added_tokens_decoder: got a {type(entries).__name__}, expected an object")
    for key, entry in entries.items():
        token_id = check_id(key, file, "added_tokens_decoder")
        yield SETTINGS_FILE, token_id, _content(entry, file, f"added_tokens_decoder.{key}"), entry


def _token(text: str, fields: Mapping[str, Any]) -> AddedToken:
    answers = text.startswith(MASK_TOKEN_PREFIX) or text in ANSWER_TOKENS
    return AddedToken(
        text,
        special=not answers and bool(fields.get("special")),
        lstrip=bool(fields.get("lstrip")),
        rstrip=bool(fields.get("rstrip")),
        single_word=bool(fields.get("single_word")),
        normalized=False,
    )


def _text(token: Any, file: Path, field: str) -> str:
    return token if isinstance(token, str) else _content(token, file, field)


def _content(entry: Any, file: Path, field: str) -> str:
    text = entry.get("content") if isinstance(entry, Mapping) else None
    if not isinstance(text, str):
        raise ValueError(f"{file}: {field}: got {entry!r}, expected an object with the token's text as content")
    return text


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}
