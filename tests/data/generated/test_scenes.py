"""Generated scenes: determinism, and expressions that refer to exactly the shapes of their masks."""

import json

import numpy as np
import pytest

from himtok_plugin.data.generated.expressions import (
    ANY_KIND,
    EXPRESSION_KINDS,
    Attributes,
    find_matching,
    generate_expression,
    lies_in_direction,
)
from himtok_plugin.data.generated.scene_questions import Question, generate_question
from himtok_plugin.data.generated.scenes import (
    MIN_VISIBLE_PIXELS,
    generate_masks,
    generate_scenes,
    write_mask_rows,
    write_rows,
)
from himtok_plugin.data.generated.shapes import COLOURS, SHAPE_KINDS, SHAPE_SIZES, SceneShape, rasterise_shape
from himtok_plugin.masks import load_mask

SCENES = 150


@pytest.fixture(scope="module", params=[64, 96])
def scenes(request):
    return list(generate_scenes(SCENES, seed=request.param, side=request.param))


def read_description(words):
    """The attributes that a phrase such as "small red circles" names, read back from its words alone."""
    known = {"size": SHAPE_SIZES, "colour": COLOURS, "kind": SHAPE_KINDS}
    found = {}
    for word in words:
        for name, values in known.items():
            if word in values or word.removesuffix("s") in values:
                found[name] = word if word in values else word.removesuffix("s")
    return Attributes(**found)


def understand(text, shapes, side):
    """All shapes that an expression can refer to, parsed from its text alone, independently of the generator."""
    words = text.split()
    for direction in ("left of", "right of", "above", "below"):
        if f" {direction} the " in text:
            target_text, anchor_text = text.split(f" {direction} the ")
            (anchor,) = find_matching(shapes, read_description(anchor_text.split()))
            candidates = [i for i in find_matching(shapes, read_description(target_text.split())) if i != anchor]
            placed = {i: lies_in_direction(shapes[i], shapes[anchor], direction, side) for i in candidates}
            assert None not in placed.values(), f"{text!r} is too close to call"
            return [i for i, here in placed.items() if here]
    return find_matching(shapes, read_description(words))


def test_an_expression_refers_to_its_targets_and_nothing_else(scenes):
    for scene in scenes:
        meant = understand(scene.expression.text, list(scene.shapes), scene.image.width)
        assert sorted(scene.expression.targets) == sorted(meant), scene.expression.text


def test_every_task_occurs_with_its_number_of_targets(scenes):
    counts = {"attribute": 1, "relation": 1, "two": 2, "none": 0}
    assert {scene.expression.task for scene in scenes} == set(EXPRESSION_KINDS)
    for scene in scenes:
        assert len(scene.masks) == counts[scene.expression.task]
        assert scene.messages[1]["content"].count("<mask>") == len(scene.masks)


def test_two_targets_are_listed_from_left_to_right(scenes):
    for scene in scenes:
        lefts = [scene.shapes[i].x for i in scene.expression.targets]
        assert lefts == sorted(lefts)


def test_every_shape_stays_visible_and_masks_do_not_overlap(scenes):
    for scene in scenes:
        covered = np.sum(scene.shape_masks, axis=0)
        assert covered.max() <= 1
        assert all(mask.sum() >= MIN_VISIBLE_PIXELS for mask in scene.shape_masks)


def test_a_mask_has_the_colour_of_its_shape(scenes):
    for scene in scenes:
        pixels = np.asarray(scene.image, dtype=float)
        for shape, mask in zip(scene.shapes, scene.shape_masks, strict=True):
            mean = pixels[mask].mean(axis=0)
            distances = {name: np.abs(mean - rgb).sum() for name, rgb in COLOURS.items()}
            assert min(distances, key=distances.get) == shape.colour


def test_the_seed_decides_everything():
    first, again, other = (list(generate_scenes(5, seed)) for seed in (3, 3, 4))
    for a, b in zip(first, again, strict=True):
        assert a.expressions == b.expressions
        assert np.array_equal(np.asarray(a.image), np.asarray(b.image))
    assert any(a.shapes != c.shapes for a, c in zip(first, other, strict=True))


def test_further_turns_ask_for_something_new():
    scenes = list(generate_scenes(60, seed=2, turns=3))
    assert {len(scene.expressions) for scene in scenes} == {1, 2, 3}
    for scene in scenes:
        assert "".join(m["content"] for m in scene.messages).count("<mask>") == len(scene.masks)
        assert "".join(m["content"] for m in scene.messages).count("<image>") == 1
        named = set()
        for expression in scene.expressions:
            assert sorted(expression.targets) == sorted(understand(expression.text, list(scene.shapes), 64))
            assert not expression.targets or set(expression.targets) - named
            named.update(expression.targets)


def test_questions_have_the_only_correct_answer_and_are_between_the_requests():
    scenes = list(generate_scenes(120, seed=4, turns=3, questions=3, max_shapes=5))
    answers, first = set(), set()
    for scene in scenes:
        questions = [turn for turn in scene.turns if isinstance(turn, Question)]
        assert len({question.text for question in questions}) == len(questions) <= 3
        assert len(scene.messages) == 2 * (len(questions) + len(scene.expressions))
        assert scene.messages[0]["content"].startswith("<image>")
        first.add(scene.messages[0]["content"].split()[0])
        for question in questions:
            words = question.text.removesuffix("?").split()
            said = question.answer.removesuffix(".").split()
            found = understand(" ".join(words[2:]), list(scene.shapes), 64)
            if words[0] == "Is":
                assert question.answer == ("Yes." if found else "No.")
            else:
                (target,) = found
                assert said[-1] == getattr(scene.shapes[target], words[1])
            answers.add(said[-1])
    assert answers == {"Yes", "No", *SHAPE_SIZES, *COLOURS, *SHAPE_KINDS}
    assert first == {"<image>Segment", "<image>What", "<image>Is"}


def test_no_question_is_about_one_of_two_equal_shapes():
    twins = [SceneShape("circle", "red", "small", x, 32, 8) for x in (16, 48)]
    asked = {generate_question(twins, 64, np.random.default_rng(seed)) for seed in range(60)} - {None}
    assert {question.answer for question in asked} <= {"No.", "It is small.", "It is red.", "It is a circle."}


def test_a_negative_number_of_questions_is_named():
    with pytest.raises(ValueError, match="questions: got -1, expected 0 or more"):
        next(generate_scenes(1, seed=0, questions=-1))


def test_a_named_answer_describes_each_mask():
    plain, named = (list(generate_scenes(40, seed=6, named=named)) for named in (False, True))
    for scene, other in zip(plain, named, strict=True):
        assert scene.expression == other.expression
        targets = [scene.shapes[i] for i in scene.expression.targets]
        if not targets:
            assert scene.messages == other.messages
            continue
        parts = other.messages[1]["content"].split("<mask>")
        assert len(parts) == len(targets) + 1
        for part, shape in zip(parts[:-1], targets, strict=True):
            assert f"the {shape.size} {shape.colour} {shape.kind} at " in part


def test_task_shares_select_tasks():
    assert {s.expression.task for s in generate_scenes(20, seed=0, task_shares={"two": 1.0})} == {"two"}


def test_rasterised_shapes_are_centred_and_scale():
    for kind in SHAPE_KINDS:
        mask = rasterise_shape(kind, 32, 32, 10, 64)
        rows, columns = np.nonzero(mask)
        assert abs(columns.mean() - 31.5) < 0.6
        assert 100 < mask.sum() < 400
        assert rasterise_shape(kind, 32, 32, 20, 64).sum() > 3.5 * mask.sum()


def test_no_expression_is_generated_where_none_is_unambiguous():
    twins = [SceneShape("circle", "red", "small", x, 32, 8) for x in (16, 48)]
    rng = np.random.default_rng(0)
    assert generate_expression(twins, "attribute", 64, rng) is None
    assert generate_expression(twins, "two", 64, rng).targets == (0, 1)
    assert generate_expression(twins[:1], "relation", 64, rng) is None
    assert ANY_KIND not in SHAPE_KINDS


def test_write_rows_writes_the_dataset_format(tmp_path):
    rows = [json.loads(line) for line in write_rows(tmp_path, 12, seed=5).read_text().splitlines()]
    scenes = list(generate_scenes(12, seed=5))
    assert len(rows) == 12
    for row, scene in zip(rows, scenes, strict=True):
        assert row["messages"] == scene.messages and scene.messages[0]["content"].startswith("<image>Segment ")
        assert row["messages"][1]["content"].count("<mask>") == len(row["masks"])
        assert row["images"][0].startswith("/")
        for rle, mask in zip(row["masks"], scene.masks, strict=True):
            assert np.array_equal(load_mask(rle), mask)


def test_write_mask_rows_writes_masks_alone(tmp_path):
    path = write_mask_rows(tmp_path / "masks.jsonl", 7, seed=1)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 7
    for row, mask in zip(rows, generate_masks(7, seed=1), strict=True):
        assert list(row) == ["masks"]
        assert np.array_equal(load_mask(row["masks"][0]), mask)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"side": 16}, "side"),
        ({"max_shapes": 0}, "max_shapes"),
        ({"count": -1}, "count"),
        ({"task_shares": {"all": 1}}, "task_shares"),
        ({"task_shares": {"two": 0}}, "task_shares"),
        ({"max_shapes": 1}, "max_shapes"),
        ({"turns": 0}, "turns"),
    ],
)
def test_bad_arguments_are_named(arguments, field):
    with pytest.raises(ValueError, match=field):
        list(generate_scenes(**{"count": 30, "seed": 0, **arguments}))


def test_unknown_task_is_named():
    with pytest.raises(ValueError, match="task: got 'three'"):
        generate_expression([], "three", 64, np.random.default_rng(0))
