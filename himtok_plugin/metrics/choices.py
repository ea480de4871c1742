"""Multiple choice: which letter an answer chooses, and the accuracy of these letters.

Contract: `choice_letter` returns a letter or None and never guesses.
"""

from __future__ import annotations

import re

_END = r"(?![A-Za-z'’])"  # after a letter that is a word by itself
_MARKED = r"(?=[.):](?![A-Za-z]))"  # a mark after a letter of a choice, also in lower case; not in "e.g."
_FIRST = re.compile(rf"^\W*(?:([A-Z]){_END}(?!\.[A-Za-z]\.)|([a-z]){_MARKED})")  # "(B)", "b. the dog"; not "U.S."
_ARTICLE_OR_PRONOUN = re.compile(r"^\W*[AI]\s+(?!(?:or|and)\b)[a-z]")  # "A dog", "I see"
# "answer is a dog" names no letter: "a" is a choice only at the end or before a mark.
_NAMED = re.compile(
    rf"\b(?i:answer|option|choice)\b\s*(?i:is|:)?\s*"
    rf"(?:\(([A-Za-z])\)|([A-Zb-hj-z]){_END}|([A-Za-z])(?:{_MARKED}|(?=\s*(?:[,;!?]|$))))"
)
_ALONE = re.compile(  # "the dog (b)", and not "dog(s)"
    rf"(?<![A-Za-z'’])([B-Z]){_END}|(?<![A-Za-z])\(([A-Za-z])\)|(?<![A-Za-z'’])(A)(?=[.):]|$)"
    r"|(?<![A-Za-z'’.(])([a-z])(?=\))"
)
_BESIDE = re.compile(  # "B or C", and not "B, a dog", "B, I think"
    rf"[.):]*\s*(?:,|/|&|\b(?i:or|and)\b)[\s,]*(?:(?i:or|and)\b)?\s*"
    rf"\(?(?:([B-HJ-Zb-hj-z]){_END}|([AIai]){_END}(?!\s+[a-z]))"
)
_LISTED = re.compile(r"(?:^|\s)\(?([A-Za-z])[.)]\s+(?=\S)")  # "B. dog C. cat"


def choice_letter(text: str) -> str | None:
    """The letter that an answer chooses, in upper case; None if it is ambiguous, such as an answer with two letters.

    Args:
        text: "B", "(b)", "b. the dog", "The answer is B", or a sentence with one single letter. There, "A" counts as an
            article unless it is in brackets or before a mark.
    """
    stripped = text.strip()
    if re.fullmatch(r"\W*[A-Za-z]\W*", stripped):
        return re.sub(r"\W", "", stripped).upper()
    first = _FIRST.match(stripped)
    if first and not _ARTICLE_OR_PRONOUN.match(stripped):
        return _single_letter(stripped, [first])
    named = list(_NAMED.finditer(stripped))
    if named:
        return _single_letter(stripped, named)
    letters = {each.upper() for match in _ALONE.finditer(stripped) for each in match.groups() if each and each != "I"}
    return letters.pop() if len(letters) == 1 else None


def _single_letter(text: str, matches: list[re.Match[str]]) -> str | None:
    """The letter of the matches; None if another one is matched, follows ("B or C"), or is in a list."""
    further = [beside for match in matches if (beside := _BESIDE.match(text, match.end()))]
    found = [*matches, *further, *_LISTED.finditer(text)]
    letters = {letter.upper() for match in found for letter in match.groups() if letter}
    return letters.pop() if len(letters) == 1 else None


class ChoiceMetrics:
    """Streaming accuracy. Answers without a letter count as wrong."""

    def __init__(self) -> None:
        self._samples = 0
        self._right = 0
        self._unreadable = 0

    def __len__(self) -> int:
        return self._samples

    def update(self, answer: str, target: str) -> bool:
        """Add a sample and return whether the answer is right.

        Raises:
            ValueError: the target has no letter.
        """
        expected = choice_letter(target)
        if expected is None:
            raise ValueError(f"target: got {target!r:.80}, expected a letter")
        chosen = choice_letter(answer)
        self._samples += 1
        self._right += chosen == expected
        self._unreadable += chosen is None
        return chosen == expected

    def merge(self, other: ChoiceMetrics) -> ChoiceMetrics:
        """Add the samples of another accumulator to this one, and return this one."""
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def compute(self) -> dict[str, float | int | None]:
        """`accuracy` (None without samples), `samples`, and `unreadable`, the number of answers without a letter."""
        accuracy = self._right / self._samples if self._samples else None
        return {"accuracy": accuracy, "samples": self._samples, "unreadable": self._unreadable}
