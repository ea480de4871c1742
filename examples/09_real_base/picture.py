"""Draw how the loss fell in each step, and answers about held-out photographs beside their targets.

The photographs themselves are not drawn: most may not be redistributed.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from pycocotools import mask as coco_mask
from questions import ASKED_NAME, read_rows

from himtok_plugin.data.records import union_rles

COLUMNS, ROWS = 8, 3
TARGET, ANSWER = "#c9d3e0", "#c8402f"


def draw_picture(folder: Path, steps: Sequence[str], answers: Path, out: Path) -> None:
    """Write a picture of the losses in `folder/STEP/logging.jsonl` and of the answers to questions with a target."""
    shown = [step for step in steps if (folder / step / "logging.jsonl").exists()]
    figure = plt.figure(figsize=(12, 6.8), layout="constrained")
    losses, shapes = figure.subfigures(2, 1, height_ratios=(1, 2.3))
    panels = losses.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, step in zip(panels, shown, strict=True):
        draw_loss(axes, step, folder / step / "logging.jsonl")
    panels[0].set_ylabel("loss")
    cells = [*shapes.subplots(ROWS, COLUMNS).flat]
    for axes in cells:
        axes.set_axis_off()
    for axes, (row, iou) in zip(cells, choose(read_rows(answers)), strict=False):  # few questions leave cells empty
        draw_answer(axes, row, iou)
    shapes.suptitle("grey: target, red: answer; evenly spaced by IoU, from the best to the worst", fontsize=9)
    figure.savefig(out, dpi=100)
    plt.close(figure)


def draw_loss(axes: Axes, step: str, log: Path) -> None:
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    # A run that was repeated or resumed appends to its log: the last entry of a step counts.
    losses = {int(each["global_step/max_steps"].split("/")[0]): each["loss"] for each in entries if "loss" in each}
    axes.plot(*zip(*sorted(losses.items()), strict=True), color=ANSWER)
    axes.set_title(step, fontsize=9)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


def choose(rows: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], float]]:
    """Choose questions with a target, evenly spaced by the IoU of their answers, the best first."""
    scored = sorted(((row, iou_of(row)) for row in rows if row["target_masks"]), key=lambda pair: -pair[1])
    places = np.linspace(0, len(scored) - 1, min(len(scored), COLUMNS * ROWS)).round().astype(int)
    return [scored[place] for place in places]


def iou_of(row: dict[str, Any]) -> float:
    """IoU of the union of the answer's masks with the union of the targets; 0 without a mask."""
    if not row["masks"]:
        return 0.0
    return float(coco_mask.iou([union_rles(row["masks"])], [union_rles(row["target_masks"])], [0])[0, 0])


def draw_answer(axes: Axes, row: dict[str, Any], iou: float) -> None:
    question = row["messages"][0]["content"].replace("<image>", "")
    asked = ASKED_NAME.fullmatch(question)
    axes.set_title(f"{asked[1] if asked else question}: {100 * iou:.0f} %", fontsize=8)
    height, width = row["target_masks"][0]["size"]
    axes.set_aspect("equal")
    axes.set_xlim(-1, width)
    axes.set_ylim(height, -1)
    axes.add_patch(Rectangle((0, 0), width - 1, height - 1, fill=False, edgecolor="#808080", clip_on=False))
    axes.contourf(coco_mask.decode(union_rles(row["target_masks"])), levels=[0.5, 1.5], colors=[TARGET])
    if row["masks"]:
        axes.contour(coco_mask.decode(union_rles(row["masks"])), levels=[0.5], colors=ANSWER, linewidths=1.3)
