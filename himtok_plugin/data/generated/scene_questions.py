"""Questions about scenes with answers in words, so that a model learns colours, kinds and sizes before it segments.

An LMM trained from scratch on masks alone learns positions first: size and place suffice for many requests, and it
stops using colour. Words are a clearer signal: after a hundred steps with these questions it distinguishes colours.
Contract: `generate_question` returns a question about the shapes with its only correct answer, or None if the drawn
question does not fit the scene. `expressions.py` decides which shapes are meant.
"""

from dataclasses import dataclass

import numpy as np

from .expressions import generate_expression
from .shapes import SceneShape

PRESENCE_SHARE = 0.25  # of the questions: "Is there a …?"; the others ask for an attribute
ABSENT_SHARE = 0.6  # of the presence questions; above one half, because absent shapes often cannot be drawn
RELATION_SHARE = 0.33  # of the questions about an attribute, those that identify the shape by a relation
ATTRIBUTE_NAMES = ("size", "colour", "kind")


@dataclass(frozen=True)
class Question:
    """``text`` such as "What colour is the small star?", ``answer`` such as "It is red."."""

    text: str
    answer: str


def generate_question(shapes: list[SceneShape], side: int, rng: np.random.Generator) -> Question | None:
    """A random question about ``shapes`` in an image of ``side`` pixels; None if the drawn one does not fit."""
    if rng.random() < PRESENCE_SHARE:
        task = "none" if rng.random() < ABSENT_SHARE else "attribute"
        expression = generate_expression(shapes, task, side, rng)
        if expression is None:
            return None
        return Question(f"Is there a {expression.attributes.phrase()}?", "Yes." if expression.targets else "No.")
    expression = generate_expression(shapes, "relation" if rng.random() < RELATION_SHARE else "attribute", side, rng)
    if expression is None:
        return None
    unmentioned = [name for name in ATTRIBUTE_NAMES if getattr(expression.attributes, name) is None]
    if not unmentioned:
        return None
    name = unmentioned[rng.integers(len(unmentioned))]
    answer = getattr(shapes[expression.targets[0]], name)
    article = "a " if name == "kind" else ""
    return Question(f"What {name} is {expression.text}?", f"It is {article}{answer}.")
