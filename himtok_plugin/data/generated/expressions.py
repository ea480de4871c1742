"""Referring expressions over the shapes of a scene, unambiguous by construction.

Contract: `refer` words one request of a given task about a list of shapes and names the shapes it means, or returns
None when the scene affords no such request. What an expression means is decided only by `matching` and `beside`, so a
test can check every expression against them.
Does not know: pixels, files, chat messages.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from .shapes import COLOURS, SHAPE_KINDS, SHAPE_SIZES, SceneShape

EXPRESSION_KINDS = ("attribute", "relation", "two", "none")
DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
ANY_KIND = "shape"
# Centres closer than this share of the side along an axis are neither left nor right, above nor below, of each other.
RELATION_MARGIN = 0.12


@dataclass(frozen=True)
class Attributes:
    """What an expression says of a shape; None where it says nothing."""

    size: str | None = None
    colour: str | None = None
    kind: str | None = None

    def words(self, plural: bool = False) -> str:
        noun = (self.kind or ANY_KIND) + ("s" if plural else "")
        return " ".join(word for word in (self.size, self.colour, noun) if word)


@dataclass(frozen=True)
class Expression:
    """``text`` such as "the small red circle"; ``targets`` are positions in the list of shapes, left to right."""

    task: str
    text: str
    targets: tuple[int, ...]
    attributes: Attributes
    direction: str | None = None
    anchor: int | None = None


def matching(shapes: list[SceneShape], attributes: Attributes) -> list[int]:
    """Positions of all shapes that the attributes fit."""
    return [
        i
        for i, shape in enumerate(shapes)
        if attributes.size in (None, shape.size)
        and attributes.colour in (None, shape.colour)
        and attributes.kind in (None, shape.kind)
    ]


def beside(shape: SceneShape, anchor: SceneShape, direction: str, side: int) -> bool | None:
    """Whether ``shape`` lies in ``direction`` of ``anchor``; None when it is too close to call."""
    dx, dy = DIRECTIONS[direction]
    distance = dx * (shape.x - anchor.x) + dy * (shape.y - anchor.y)
    if abs(distance) < RELATION_MARGIN * side:
        return None
    return distance > 0


def refer(shapes: list[SceneShape], task: str, side: int, rng: np.random.Generator) -> Expression | None:
    """One expression of ``task`` about ``shapes`` in an image of ``side`` pixels, or None if there is none."""
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


def _pick(options: list, rng: np.random.Generator):
    return options[rng.integers(len(options))] if options else None


def _attribute(shapes: list[SceneShape], rng: np.random.Generator) -> Expression | None:
    target = int(rng.integers(len(shapes)))
    unique = [a for a in _descriptions(shapes[target]) if matching(shapes, a) == [target]]
    attributes = _pick(unique, rng)
    if attributes is None:
        return None
    return Expression("attribute", f"the {attributes.words()}", (target,), attributes)


def _relation(shapes: list[SceneShape], side: int, rng: np.random.Generator) -> Expression | None:
    options = []
    for anchor, anchor_shape in enumerate(shapes):
        named = [a for a in _descriptions(anchor_shape) if a.kind and matching(shapes, a) == [anchor]]
        if not named:
            continue
        for target, shape in enumerate(shapes):
            for attributes in (Attributes(), Attributes(kind=shape.kind), Attributes(colour=shape.colour)):
                for direction in DIRECTIONS:
                    others = [i for i in matching(shapes, attributes) if i != anchor]
                    sides = [beside(shapes[i], anchor_shape, direction, side) for i in others]
                    # A candidate that is too close to call would make the expression a matter of opinion.
                    if None not in sides and [i for i, here in zip(others, sides, strict=True) if here] == [target]:
                        options.append((target, attributes, direction, anchor, named))
    option = _pick(options, rng)
    if option is None:
        return None
    target, attributes, direction, anchor, named = option
    text = f"the {attributes.words()} {direction} the {_pick(named, rng).words()}"
    return Expression("relation", text, (target,), attributes, direction, anchor)


def _two(shapes: list[SceneShape], rng: np.random.Generator) -> Expression | None:
    options = {a: matching(shapes, a) for shape in shapes for a in _descriptions(shape)}
    attributes = _pick([a for a, found in options.items() if len(found) == 2], rng)
    if attributes is None:
        return None
    targets = tuple(sorted(options[attributes], key=lambda i: shapes[i].x))
    start = _pick(["all", f"the {NUMBERS[2]}"], rng)
    return Expression("two", f"{start} {attributes.words(plural=True)}", targets, attributes)


def _none(shapes: list[SceneShape], rng: np.random.Generator) -> Expression | None:
    attributes = Attributes(
        size=_pick([None, *SHAPE_SIZES], rng),
        colour=_pick([None, *COLOURS], rng),
        kind=_pick([None, *SHAPE_KINDS], rng),
    )
    if attributes == Attributes() or matching(shapes, attributes):
        return None
    return Expression("none", f"the {attributes.words()}", (), attributes)
