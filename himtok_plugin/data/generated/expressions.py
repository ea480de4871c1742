"""Referring expressions for the shapes of a scene, unambiguous by construction.

Contract: `generate_expression` returns an expression of the requested kind with the shapes that it refers to, or None
if there is none for this scene. What an expression refers to is decided by `find_matching` and `lies_in_direction`
alone, so that tests can check every expression with them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import numpy as np

from .shapes import COLOURS, SHAPE_KINDS, SHAPE_SIZES, SceneShape

Choice = TypeVar("Choice")

EXPRESSION_KINDS = ("attribute", "relation", "two", "none")
DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
ANY_KIND = "shape"
# Centres closer than this share of the side along an axis have no order along it: neither is left of the other.
RELATION_MARGIN = 0.12


@dataclass(frozen=True)
class Attributes:
    """The attributes that an expression mentions; None: not mentioned."""

    size: str | None = None
    colour: str | None = None
    kind: str | None = None

    def phrase(self, plural: bool = False) -> str:
        """A noun phrase without article, such as "small red circles"."""
        noun = (self.kind or ANY_KIND) + ("s" if plural else "")
        return " ".join(word for word in (self.size, self.colour, noun) if word)


@dataclass(frozen=True)
class Expression:
    """A referring expression.

    Attributes:
        task: its kind, one of `EXPRESSION_KINDS`.
        text: such as "the small red circle".
        targets: indices of the shapes that it refers to, from left to right.
        attributes: the attributes that it mentions.
        direction: one of `DIRECTIONS`, for a relation, relative to the shape with the index `anchor`.
    """

    task: str
    text: str
    targets: tuple[int, ...]
    attributes: Attributes
    direction: str | None = None
    anchor: int | None = None


def find_matching(shapes: list[SceneShape], attributes: Attributes) -> list[int]:
    """The indices of all shapes with these attributes."""
    return [
        i
        for i, shape in enumerate(shapes)
        if attributes.size in (None, shape.size)
        and attributes.colour in (None, shape.colour)
        and attributes.kind in (None, shape.kind)
    ]


def lies_in_direction(shape: SceneShape, anchor: SceneShape, direction: str, side: int) -> bool | None:
    """Whether ``shape`` lies in ``direction`` of ``anchor``; None if the centres are too close to decide."""
    dx, dy = DIRECTIONS[direction]
    distance = dx * (shape.x - anchor.x) + dy * (shape.y - anchor.y)
    if abs(distance) < RELATION_MARGIN * side:
        return None
    return distance > 0


def generate_expression(shapes: list[SceneShape], task: str, side: int, rng: np.random.Generator) -> Expression | None:
    """A random expression of the kind ``task`` for ``shapes`` in an image of ``side`` pixels; None if there is none."""
    if task == "attribute":
        return _attribute(shapes, rng)
    if task == "relation":
        return _relation(shapes, side, rng)
    if task == "two":
        return _two(shapes, rng)
    if task == "none":
        return _none(shapes, rng)
    raise ValueError(f"task: got {task!r}, expected one of {EXPRESSION_KINDS}")


def _descriptions(shape: SceneShape) -> list[Attributes]:
    """Every way to describe a shape, from one attribute to all three."""
    known = {"size": shape.size, "colour": shape.colour, "kind": shape.kind}
    return [
        Attributes(**{name: known[name] for name in names})
        for count in (1, 2, 3)
        for names in combinations(known, count)
    ]


def _choose(options: Sequence[Choice], rng: np.random.Generator) -> Choice:
    return options[int(rng.integers(len(options)))]


def _attribute(shapes: list[SceneShape], rng: np.random.Generator) -> Expression | None:
    target = int(rng.integers(len(shapes)))
    unique = [a for a in _descriptions(shapes[target]) if find_matching(shapes, a) == [target]]
    if not unique:
        return None
    attributes = _choose(unique, rng)
    return Expression("attribute", f"the {attributes.phrase()}", (target,), attributes)


def _relation(shapes: list[SceneShape], side: int, rng: np.random.Generator) -> Expression | None:
    options: list[tuple[int, Attributes, str, int, list[Attributes]]] = []
    for anchor, anchor_shape in enumerate(shapes):
        named = [a for a in _descriptions(anchor_shape) if a.kind and find_matching(shapes, a) == [anchor]]
        if not named:
            continue
        for target, shape in enumerate(shapes):
            for attributes in (Attributes(), Attributes(kind=shape.kind), Attributes(colour=shape.colour)):
                for direction in DIRECTIONS:
                    others = [i for i in find_matching(shapes, attributes) if i != anchor]
                    sides = [lies_in_direction(shapes[i], anchor_shape, direction, side) for i in others]
                    # A candidate that is too close to decide would make the expression ambiguous.
                    if None not in sides and [i for i, here in zip(others, sides, strict=True) if here] == [target]:
                        options.append((target, attributes, direction, anchor, named))
    if not options:
        return None
    target, attributes, direction, anchor, named = _choose(options, rng)
    text = f"the {attributes.phrase()} {direction} the {_choose(named, rng).phrase()}"
    return Expression("relation", text, (target,), attributes, direction, anchor)


def _two(shapes: list[SceneShape], rng: np.random.Generator) -> Expression | None:
    matches = {a: find_matching(shapes, a) for shape in shapes for a in _descriptions(shape)}
    pairs = [a for a, found in matches.items() if len(found) == 2]
    if not pairs:
        return None
    attributes = _choose(pairs, rng)
    targets = tuple(sorted(matches[attributes], key=lambda i: shapes[i].x))
    start = _choose(["all", f"the {NUMBERS[2]}"], rng)
    return Expression("two", f"{start} {attributes.phrase(plural=True)}", targets, attributes)


def _none(shapes: list[SceneShape], rng: np.random.Generator) -> Expression | None:
    attributes = Attributes(
        size=_choose([None, *SHAPE_SIZES], rng),
        colour=_choose([None, *COLOURS], rng),
        kind=_choose([None, *SHAPE_KINDS], rng),
    )
    if attributes == Attributes() or find_matching(shapes, attributes):
        return None
    return Expression("none", f"the {attributes.phrase()}", (), attributes)
