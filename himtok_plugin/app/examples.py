"""Examples of the page: generated scenes with questions, which the shipped checkpoint can answer."""

from __future__ import annotations

from pathlib import Path

from himtok_plugin.data.generated.expressions import Expression
from himtok_plugin.data.generated.scenes import generate_scenes

_COUNT = 4
_SEED = 20261129  # not one of a training
_TASKS = {"attribute": 0.5, "relation": 0.3, "two": 0.2}  # every example has a target


def save_examples(folder: Path) -> list[tuple[Path, str]]:
    """Draw scenes into a folder; returns (image file, question) of each."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = []
    for i, scene in enumerate(generate_scenes(_COUNT, _SEED, max_shapes=3, task_shares=_TASKS), 1):
        path = folder / f"scene_{i}.png"
        scene.image.save(path)
        turn = scene.turns[0]
        assert isinstance(turn, Expression)
        saved.append((path, f"Segment {turn.text}."))
    return saved
