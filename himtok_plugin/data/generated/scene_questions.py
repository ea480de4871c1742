"""Questions about the scenes that words answer: what a model has to see in a scene before it can segment it.

An LMM from nothing that is shown masks alone learns where shapes are long before it looks at what they are: it can do
much of what is asked by size and place, and its features of colour wither. A word is a clearer signal: colours are
told apart within a hundred steps of such questions.

Contract: `ask` words one question about a list of shapes, with the only right answer, or returns None when the scene
affords no such question. What is meant is decided by `expressions`.
Does not know: pixels, files, chat messages, masks.
"""

from dataclasses import dataclass

import numpy as np

from .expressions import refer
from .shapes import SceneShape

PRESENCE_SHARE = 0.25  # of the questions, whether something is there; the others ask for a shape's looks
ABSENT_SHARE = 0.6  # of those; drawn more often than not because a shape that is there is found more easily
RELATION_SHARE = 0.33  # of the questions about looks, those that name the shape by where it is
LOOKS = ("size", "colour", "kind")


@dataclass(frozen=True)
class Question:
    """``text`` such as "What colour is the small star?", ``answer`` such as "It is red."."""

    text: str
    answer: str


def ask(shapes: list[SceneShape], side: int, rng: np.random.Generator) -> Question | None:
    """A question about ``shapes`` in an image of ``side`` pixels, or None if what was drawn cannot be asked."""
    if rng.random() < PRESENCE_SHARE:
        task = "none" if rng.random() < ABSENT_SHARE else "attribute"
        expression = refer(shapes, task, side, rng)
        if expression is None:
            return None
        return Question(f"Is there a {expression.attributes.words()}?", "Yes." if expression.targets else "No.")
    expression = refer(shapes, "relation" if rng.random() < RELATION_SHARE else "attribute", side, rng)
    if expression is None:
        return None
    unsaid = [look for look in LOOKS if getattr(expression.attributes, look) is None]
    if not unsaid:
        return None
    look = unsaid[rng.integers(len(unsaid))]
    answer = getattr(shapes[expression.targets[0]], look)
    article = "a " if look == "kind" else ""
    return Question(f"What {look} is {expression.text}?", f"It is {article}{answer}.")
