"""examples/09_real_base: the picture of losses and answers."""

import json

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask


def rectangle(top, bottom, left, right):
    mask = np.zeros((60, 80), np.uint8)
    mask[top:bottom, left:right] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    return rle | {"counts": rle["counts"].decode()}


def answer(name, targets, masks):
    question = {"role": "user", "content": f"<image>Segment the {name}."}
    answers = [mask | {"codes": [1], "score": 0.5} for mask in masks]
    return {"messages": [question], "target_masks": targets, "masks": answers}


def test_answers_are_drawn_beside_their_targets_and_losses_above(modules, tmp_path):
    import picture

    target = rectangle(10, 50, 10, 60)
    rows = [
        answer("dog", [target], [target]),
        answer("cat", [rectangle(10, 50, 10, 35), rectangle(10, 50, 35, 60)], [rectangle(10, 30, 10, 60)]),
        answer("cow", [target], []),  # an answer in words
        answer("fox", [], []),  # no target
    ]
    (tmp_path / "out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = [(row["messages"][0]["content"][-4:-1], iou) for row, iou in picture.choose(rows)]
    assert chosen == [("dog", 1), ("cat", 0.5), ("cow", 0)]
    (tmp_path / "masks").mkdir()
    entries = [{"loss": 2, "global_step/max_steps": "1/10"}, {"train_runtime": 3}]  # the last line has no loss
    (tmp_path / "masks" / "logging.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    picture.draw_picture(tmp_path, ["words", "masks"], tmp_path / "out.jsonl", tmp_path / "picture.png")
    pixels = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB")).astype(int)
    for color in (picture.TARGET, picture.ANSWER):
        wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - wanted).sum(-1) < 12).sum() > 50
