"""The expressions.json that docs/data.md shows belongs to masks as the page says."""

import json

import numpy as np
from pages import DOCS, blocks
from PIL import Image

from himtok_plugin import cli


def test_the_example_names_the_masks_that_the_page_describes(tmp_path, monkeypatch):
    (example,) = [
        block.text for block in blocks("json") if block.page == DOCS / "data.md" and '"photo_1"' in block.text
    ]
    monkeypatch.chdir(tmp_path)
    for name in ("images", "masks/plates"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("photo_1", "photo_2"):
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(f"images/{name}.jpg")
    mask = np.zeros((20, 30), np.uint8)
    mask[3:9, 4:12] = 255
    for name in ("photo_1", "photo_1_2", "plates/photo_2"):
        Image.fromarray(mask).save(f"masks/{name}.png")
    (tmp_path / "expressions.json").write_text(example)
    try:
        cli.main(["prepare", "png", "--root", ".", "rows.jsonl", "--num_workers", "0", "--strict"])
    except SystemExit as stop:
        assert not stop.code
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    texts = [text for value in json.loads(example).values() for text in ([value] if isinstance(value, str) else value)]
    assert sorted(expression for row in rows for expression in row["expressions"][:1]) == sorted(
        [texts[0], texts[0], *texts[2:]]
    )
    assert [row["source"]["image_id"] for row in rows] == ["photo_1"] * 3 + ["photo_2"]
    assert not (tmp_path / "rows.jsonl.skipped.jsonl").exists()
