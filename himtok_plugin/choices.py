"""Multiple choice: which letter an answer means, and how often it is the right one.

Contract: `choice_letter` reads a letter or nothing, never a guess; `ChoiceMetrics` accumulates and merges. Knows no
questions.
"""

from __future__ import annotations

import re

_FIRST = re.compile(r"^\W*([A-Z])(?![A-Za-z'’])")  # "B", "(B)", "B. the dog", "B: it is"
_NAMED = re.compile(
    r"\b(?i:answer|option|choice)\b\s*(?i:is|:)?\s*(?:\(([A-Za-z])\)|([A-Z])(?![A-Za-z'’]))"  # "answer is a dog": none
)
_ALONE = re.compile(r"(?<![A-Za-z'’])([B-Z])(?![A-Za-z'’])|\(([A-Z])\)|(?<![A-Za-z'’])(A)(?=[.):]|$)")


def choice_letter(text: str) -> str | None:
    """The letter that an answer chooses, in upper case; None where it cannot be told.

    Args:
        text: "B", "(b)", "B. the dog", "The answer is B", or a sentence that holds one letter of its own ("A" is read
            as the article there, unless it stands in brackets or before a dot).
    """
    stripped = text.strip()
    if re.fullmatch(r"\W*[A-Za-z]\W*", stripped):
        return re.sub(r"\W", "", stripped).upper()
    first = _FIRST.match(stripped)
    if first and not (first[1] in "AI" and re.match(r"^\W*[AI]\s+[a-z]", stripped)):  # "A dog", "I see"
        return first[1]
    named = _NAMED.search(stripped)
    if named:
        return (named[1] or named[2]).upper()
    letters = {letter for match in _ALONE.finditer(stripped) for letter in match.groups() if letter and letter != "I"}
    return letters.pop() if len(letters) == 1 else None


class ChoiceMetrics:
    """Streaming accuracy; answers without a letter are wrong, and counted."""

    def __init__(self) -> None:
        self._samples = 0
        self._right = 0
        self._unreadable = 0

    def __len__(self) -> int:
        return self._samples

    def update(self, answer: str, target: str) -> bool:
        """Add one sample and return whether it is right.

        Raises:
            ValueError: a target without a letter.
        """
        wanted = choice_letter(target)
        if wanted is None:
            raise ValueError(f"target: got {target!r:.80}, expected a letter")
        chosen = choice_letter(answer)
        self._samples += 1
        self._right += chosen == wanted
        self._unreadable += chosen is None
        return chosen == wanted

    def merge(self, other: ChoiceMetrics) -> ChoiceMetrics:
        """Add the samples of another accumulator to this one, and return this one."""
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def compute(self) -> dict[str, float | int | None]:
        """`accuracy` (None over no samples), `samples`, and `unreadable`: answers without a letter."""
        accuracy = self._right / self._samples if self._samples else None
        return {"accuracy": accuracy, "samples": self._samples, "unreadable": self._unreadable}
