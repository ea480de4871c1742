"""Generated scenes: images of coloured shapes, requests with referring expressions, and their masks.

Contract: everything follows from the seed; the same arguments give the same pixels and texts on every machine.
`generate_scenes` yields scenes, `write_rows` writes them in the dataset format, `write_mask_rows` writes masks alone
for stage 1. Different seeds give independent scenes: use two seeds for training and held-out data.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from himtok_plugin.mask_text import IMAGE_PLACEHOLDER, MASK_PLACEHOLDER
from himtok_plugin.masks import to_rle

from .expressions import EXPRESSION_KINDS, Expression, generate_expression
from .scene_questions import Question, generate_question
from .shapes import COLOURS, SHAPE_KINDS, SHAPE_SIZES, SceneShape, rasterise_shape

DEFAULT_SIDE = 64
MIN_SIDE = 32  # In smaller images a small shape has fewer pixels than `MIN_VISIBLE_PIXELS`.
MAX_SHAPES = 3
# Mostly one shape by its attributes; the rest trains relations, several masks, and answers without a mask.
TASK_SHARES: Mapping[str, float] = {"attribute": 0.55, "relation": 0.2, "two": 0.15, "none": 0.1}
MIN_VISIBLE_PIXELS = 24
MIN_VISIBLE_SHAPE = 0.8  # A shape that is covered further no longer looks like its kind.
PLACEMENT_TRIES = 50
SCENE_TRIES = 1000
EXPRESSION_TRIES = 10
QUESTION_TRIES = 4  # for each question
COLOUR_JITTER = 18
BACKGROUND_RANGE = (90, 165)  # Greys away from every colour of the palette.
BACKGROUND_SLOPE = 25
BACKGROUND_NOISE = 6.0


@dataclass(frozen=True)
class Scene:
    """A scene and a conversation about it.

    Attributes:
        image: RGB.
        shapes: in drawing order.
        shape_masks: the visible pixels of each shape, bool (h, w).
        turns: the conversation: requests for masks (`expressions`; the first one is `expression`) and questions.
        named: whether answers name the shape of each mask.
    """

    image: Image.Image
    shapes: tuple[SceneShape, ...]
    shape_masks: tuple[np.ndarray, ...]
    turns: tuple[Expression | Question, ...]
    named: bool = False

    @property
    def expressions(self) -> tuple[Expression, ...]:
        return tuple(turn for turn in self.turns if isinstance(turn, Expression))

    @property
    def expression(self) -> Expression:
        return self.expressions[0]

    @property
    def masks(self) -> list[np.ndarray]:
        """The masks of all expressions in order, bool (h, w), left to right within one expression."""
        return [self.shape_masks[i] for expression in self.expressions for i in expression.targets]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation in the dataset format, with one ``<mask>`` per target."""
        messages = []
        for number, turn in enumerate(self.turns):
            image = IMAGE_PLACEHOLDER if number == 0 else ""
            if isinstance(turn, Question):
                request, answer = turn.text, turn.answer
            else:
                request, answer = f"Segment {turn.text}.", self._answer(turn)
            messages.append({"role": "user", "content": image + request})
            messages.append({"role": "assistant", "content": answer})
        return messages

    def _answer(self, expression: Expression) -> str:
        if not expression.targets:
            return f"There is no {expression.attributes.phrase()} in the image."
        one = len(expression.targets) == 1
        if self.named:
            found = [self.shapes[i] for i in expression.targets]
            named = [f"the {shape.size} {shape.colour} {shape.kind} at {MASK_PLACEHOLDER}" for shape in found]
            return f"{'It is' if one else 'They are'} {' and '.join(named)}."
        if one:
            return f"The mask appears at {MASK_PLACEHOLDER}."
        return "The masks appear at " + " and ".join([MASK_PLACEHOLDER] * len(expression.targets)) + "."


def generate_scenes(
    count: int,
    seed: int,
    side: int = DEFAULT_SIDE,
    max_shapes: int = MAX_SHAPES,
    task_shares: Mapping[str, float] = TASK_SHARES,
    turns: int = 1,
    questions: int = 0,
    named: bool = False,
) -> Iterator[Scene]:
    """Yield ``count`` scenes of ``side`` x ``side`` pixels with 1 to ``max_shapes`` shapes.

    ``task_shares`` gives the probability of each task of `expressions.EXPRESSION_KINDS`; they need not add up to 1.
    ``turns`` is the most requests per image; there are fewer if no further request asks for something new.
    ``questions`` is the most questions with answers in words, between the requests. With ``named``, an answer describes
    the shape before its mask, an intermediate step on the way to the codes.
    """
    _check_arguments(count, side, max_shapes)
    if turns < 1:
        raise ValueError(f"turns: got {turns}, expected at least 1")
    if questions < 0:
        raise ValueError(f"questions: got {questions}, expected 0 or more")
    shares = _task_probabilities(task_shares)
    rng = np.random.default_rng(seed)
    for _ in range(count):
        task = str(rng.choice(EXPRESSION_KINDS, p=shares))
        shapes, masks, expression = _place_shapes_for(task, side, max_shapes, rng)
        expressions = [expression]
        while len(expressions) < turns and (more := _next_expression(shapes, expressions, side, shares, rng)):
            expressions.append(more)
        conversation = _insert_questions(expressions, questions, shapes, side, rng) if questions else expressions
        yield Scene(_draw_image(shapes, masks, side, rng), tuple(shapes), tuple(masks), tuple(conversation), named)


def generate_masks(
    count: int, seed: int, side: int = DEFAULT_SIDE, max_shapes: int = MAX_SHAPES
) -> Iterator[np.ndarray]:
    """Yield ``count`` masks, bool (side, side), each the visible part of one shape of a scene."""
    _check_arguments(count, side, max_shapes)
    rng = np.random.default_rng(seed)
    left = count
    while left:
        _, masks = _place_shapes(side, int(rng.integers(1, max_shapes + 1)), rng)
        for mask in masks[:left]:
            yield mask
            left -= 1


def write_rows(
    out_dir: str | Path,
    count: int,
    seed: int,
    side: int = DEFAULT_SIDE,
    max_shapes: int = MAX_SHAPES,
    task_shares: Mapping[str, float] = TASK_SHARES,
    turns: int = 1,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Path:
    """Write ``count`` scenes to ``out_dir``: ``images/*.png`` and ``rows.jsonl``, whose path is returned.

    Image paths are absolute, because ms-swift resolves relative ones against the working directory. ``progress`` wraps
    the iteration, e.g. ``functools.partial(tqdm, total=count)``.
    """
    rows = Path(out_dir).resolve() / "rows.jsonl"
    rows.parent.mkdir(parents=True, exist_ok=True)
    with rows.open("w", encoding="utf-8") as file:
        scenes = generate_scenes(count, seed, side, max_shapes, task_shares, turns)
        for scene, image in with_saved_images(rows.parent, progress(scenes)):
            file.write(json.dumps(scene_row(scene, image)) + "\n")
    return rows


def with_saved_images(out_dir: str | Path, scenes: Iterable[Scene]) -> Iterator[tuple[Scene, str]]:
    """Write the image of every scene to ``out_dir/images``; yields (scene, absolute path of its image)."""
    images = Path(out_dir).resolve() / "images"
    images.mkdir(parents=True, exist_ok=True)
    for i, scene in enumerate(scenes):
        path = images / f"{i:06d}.png"
        scene.image.save(path, compress_level=1)  # fast; these files are temporary
        yield scene, str(path)


def scene_row(scene: Scene, image_path: str) -> dict:
    """A scene in the dataset format: the conversation, the image, and the masks as COCO RLE in order of appearance."""
    return {
        "messages": scene.messages,
        "images": [image_path],
        "masks": [to_rle(mask) for mask in scene.masks],
    }


def write_mask_rows(
    path: str | Path,
    count: int,
    seed: int,
    side: int = DEFAULT_SIDE,
    max_shapes: int = MAX_SHAPES,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Path:
    """Write ``count`` rows ``{"masks": [RLE]}`` to the JSONL file ``path``, for training the mask tokenizer."""
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for mask in progress(generate_masks(count, seed, side, max_shapes)):
            file.write(json.dumps({"masks": [to_rle(mask)]}) + "\n")
    return path


def _check_arguments(count: int, side: int, max_shapes: int) -> None:
    if count < 0:
        raise ValueError(f"count: got {count}, expected 0 or more")
    if side < MIN_SIDE:
        raise ValueError(f"side: got {side}, expected at least {MIN_SIDE} pixels")
    if max_shapes < 1:
        raise ValueError(f"max_shapes: got {max_shapes}, expected at least 1")


def _task_probabilities(task_shares: Mapping[str, float]) -> np.ndarray:
    unknown = sorted(set(task_shares) - set(EXPRESSION_KINDS))
    if unknown:
        raise ValueError(f"task_shares: got {unknown}, expected tasks among {EXPRESSION_KINDS}")
    shares = np.array([task_shares.get(task, 0.0) for task in EXPRESSION_KINDS])
    if (shares < 0).any() or shares.sum() <= 0:
        raise ValueError(f"task_shares: got {dict(task_shares)}, expected shares of 0 or more, some of them positive")
    return shares / shares.sum()


def _place_shapes_for(
    task: str, side: int, max_shapes: int, rng: np.random.Generator
) -> tuple[list[SceneShape], list[np.ndarray], Expression]:
    """Random shapes with an expression of the kind ``task``."""
    fewest = 2 if task in ("relation", "two") else 1
    if max_shapes < fewest:
        raise ValueError(f"max_shapes: got {max_shapes}, expected at least {fewest} for the task {task!r}")
    for _ in range(SCENE_TRIES):
        shapes, masks = _place_shapes(side, int(rng.integers(fewest, max_shapes + 1)), rng)
        expression = generate_expression(shapes, task, side, rng)
        if expression is not None:
            return shapes, masks, expression
    raise RuntimeError(f"no scene for the task {task!r} in {SCENE_TRIES} tries (side {side}, max_shapes {max_shapes})")


def _next_expression(
    shapes: list[SceneShape], earlier: list[Expression], side: int, shares: np.ndarray, rng: np.random.Generator
) -> Expression | None:
    """A further request about the same shapes, or None if none was found.

    It refers to a shape that no earlier request referred to, or to none: a mask that is already in the conversation
    could be copied.
    """
    named = {i for expression in earlier for i in expression.targets}
    for _ in range(EXPRESSION_TRIES):
        expression = generate_expression(shapes, str(rng.choice(EXPRESSION_KINDS, p=shares)), side, rng)
        if expression is None or expression.text in [e.text for e in earlier]:
            continue
        if not expression.targets or set(expression.targets) - named:
            return expression
    return None


def _insert_questions(
    expressions: list[Expression], count: int, shapes: list[SceneShape], side: int, rng: np.random.Generator
) -> list[Expression | Question]:
    """Up to ``count`` different questions at random places between the expressions, which stay in their order."""
    chosen: dict[str, Question] = {}
    for _ in range(count * QUESTION_TRIES):
        if len(chosen) < count and (question := generate_question(shapes, side, rng)):
            chosen.setdefault(question.text, question)
    turns: list[Expression | Question] = list(expressions)
    for question in chosen.values():
        turns.insert(int(rng.integers(len(turns) + 1)), question)
    return turns


def _place_shapes(side: int, count: int, rng: np.random.Generator) -> tuple[list[SceneShape], list[np.ndarray]]:
    """Up to ``count`` shapes (fewer if there is no room, at least one) and their visible pixels."""
    shapes: list[SceneShape] = []
    masks: list[np.ndarray] = []
    areas: list[int] = []
    for _ in range(PLACEMENT_TRIES):
        if len(shapes) == count:
            break
        kind, colour, size = (str(rng.choice(list(names))) for names in (SHAPE_KINDS, COLOURS, SHAPE_SIZES))
        radius = side * float(rng.uniform(*SHAPE_SIZES[size]))
        reach = radius * 1.1 + 1  # The points of a star lie 10 % outside its half extent.
        x, y = (float(v) for v in rng.uniform(reach, side - reach, size=2))
        own = rasterise_shape(kind, x, y, radius, side)
        visible = [mask & ~own for mask in masks]
        if all(
            after.sum() >= max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHAPE * area)
            for after, area in zip(visible, areas, strict=True)
        ):
            shapes.append(SceneShape(kind, colour, size, x, y, radius))
            masks = [*visible, own]
            areas.append(int(own.sum()))
    return shapes, masks


def _draw_image(shapes: list[SceneShape], masks: list[np.ndarray], side: int, rng: np.random.Generator) -> Image.Image:
    """The image: a grey background with a slope and noise, flat shapes with a jittered colour."""
    ramp = np.linspace(-1, 1, side)
    slope_x, slope_y = rng.uniform(-BACKGROUND_SLOPE, BACKGROUND_SLOPE, size=2)
    grey = rng.uniform(*BACKGROUND_RANGE) + slope_x * ramp[None, :] + slope_y * ramp[:, None]
    pixels = np.repeat(grey[:, :, None], 3, axis=2)
    for shape, mask in zip(shapes, masks, strict=True):
        pixels[mask] = np.array(COLOURS[shape.colour]) + rng.uniform(-COLOUR_JITTER, COLOUR_JITTER, size=3)
    pixels += rng.normal(0, BACKGROUND_NOISE, size=(side, side, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
