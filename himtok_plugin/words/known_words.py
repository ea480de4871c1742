"""The words that the questions of a model's training had, and the words of a question that are not among them.

A model with a small training answers any question: it calls a star a bus, with a high score. A checkpoint whose whole
training is known has the file `known_words.json`, a list of words, beside its weights. Other checkpoints have none:
nobody has listed the words of a large base model.

Words are compared without case, punctuation, symbols, and markup in angle brackets (`<image>`, `<mask>`, mask tokens).

- A singular is known by its plural and the other way round (plurals.py); "man's" is known by "man".
- Parts between hyphens and apostrophes are words of their own: "dark-red" is known by "dark" and "red".
- Numbers in digits are one word: training with "2 cups" knows "3 cups".
- Scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) are compared by characters.

Contract: needs the standard library only.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from himtok_plugin.checkpoints.file_contents import AGAIN, read_json

from .plurals import other_numbers

KNOWN_WORDS_FILE = "known_words.json"
UNKNOWN_WORDS = "unknown_words"  # field of a result whose question has some
_NUMBER = "0"  # stands for all numbers in digits
_MARKUP = re.compile(r"<[^<>\s]+>")
_JOINING = "'’‐-"  # within a word; Unicode's other hyphens are normalized
_POSSESSIVE = "s"
_WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "IDEOGRAPHIC")
_RUNS = re.compile("w+(?:jw+)*|u")  # over the kinds of a text's characters, see `_classify`


@dataclass(frozen=True)
class KnownWords:
    """The words of a model's training questions.

    Attributes:
        words: as `list_words` returns them.
    """

    words: frozenset[str]

    @classmethod
    def of_texts(cls, texts: Iterable[str]) -> KnownWords:
        """Collect the words of training questions."""
        pieces = {piece for text in texts for piece in text.split()}  # most texts share theirs
        return cls(frozenset(word for piece in pieces for word in list_words(piece)))

    def __or__(self, other: KnownWords) -> KnownWords:
        return KnownWords(self.words | other.words)

    def __contains__(self, word: str) -> bool:
        return word in self.words or not self.words.isdisjoint(other_numbers(word))

    def find_unknown(self, text: str) -> list[str]:
        """Find the words of a question that are not known.

        Args:
            text: the question; placeholders and mask text are ignored.
        Returns:
            The words as the question writes them, in order, each once.
        """
        found: dict[tuple[str, ...], str] = {}
        characters, end = "", -1  # unknown ones of a script without spaces that follow each other
        for written, keys, start in _split(text):
            if all(key in self for key in keys):
                continue
            if _is_written_without_spaces(written[0]):
                characters = characters + written if start == end else written
                end = start + 1
                found.pop((characters[:-1],), None)
                found.setdefault((characters,), characters)
            else:
                found.setdefault(keys, written)
        return list(found.values())

    def save(self, folder: str | Path) -> Path:
        """Write `known_words.json` into a checkpoint's folder and return its path."""
        path = Path(folder, KNOWN_WORDS_FILE)
        path.write_text(json.dumps(sorted(self.words), ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> KnownWords | None:
        """Load the list of a checkpoint; None if it has none.

        Raises:
            ValueError: the file is damaged.
        """
        path = Path(folder, KNOWN_WORDS_FILE)
        if not path.is_file():
            return None
        words = read_json(path)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{path}: got a {type(words).__name__}, expected a list of texts: {AGAIN}")
        return cls(frozenset(words))


def list_words(text: str) -> list[str]:
    """List the words of a text in the form in which they are compared."""
    return [key for _, keys, _ in _split(text) for key in keys]


def find_question(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of a conversation's last question: the user's messages after the last answer before them.

    Args:
        messages: with `role` and `content`, a text or a list of parts; an answer may follow the question.
    """
    rest = list(messages)
    while rest and rest[-1].get("role") == "assistant":
        rest.pop()
    asked = list(takewhile(lambda message: message.get("role") != "assistant", reversed(rest)))
    return "\n".join(read_content(message) for message in reversed(asked) if message.get("role") == "user")


def describe_unknown_words(words: Sequence[str]) -> str:
    """Say in one sentence what unknown words mean; empty if there are none."""
    if not words:
        return ""
    listed = ", ".join(f'"{word}"' for word in words)
    return (
        f"No question in this model's training had the word{'s' if len(words) > 1 else ''} {listed}, "
        "so its answer means little, whatever its score."
    )


def read_content(message: Mapping[str, Any]) -> str:
    """Return the text of a message, whose content is a text or a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "\n".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _split(text: str) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """Yield each word as it is written, its parts in the form in which they are compared, and where it starts."""
    text = unicodedata.normalize("NFKC", _MARKUP.sub(" ", text))
    # Marks of direction and joining, which are not visible.
    text = "".join(character for character in text if unicodedata.category(character) != "Cf")
    for run in _RUNS.finditer("".join(map(_classify, text))):
        written = text[run.start() : run.end()]
        parts = re.split(f"[{_JOINING}]", written.casefold())
        if len(parts) > 1 and parts[-1] == _POSSESSIVE:
            parts.pop()
        yield written, tuple(_NUMBER if part.isdecimal() else part for part in parts), run.start()


@cache
def _classify(character: str) -> str:
    """The kind of a character: w in a word, u a word of its own, j within a word only, space for all others."""
    if _is_written_without_spaces(character):
        return "u"
    if character.isalnum() or unicodedata.category(character).startswith("M"):
        return "w"
    return "j" if character in _JOINING else " "


@cache
def _is_written_without_spaces(character: str) -> bool:
    is_letter = unicodedata.category(character)[0] in "LM"
    return is_letter and unicodedata.name(character, "").startswith(_WITHOUT_SPACES)
