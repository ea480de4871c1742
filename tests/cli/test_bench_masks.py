"""`himtok bench masks`: how well and how fast a mask tokenizer reconstructs given masks."""

import json

import pytest
from typer.testing import CliRunner

from himtok_plugin.cli import app
from himtok_plugin.data.generated.scenes import generate_masks
from himtok_plugin.masks import to_rle


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("masks") / "masks.jsonl"
    masks = [to_rle(mask) for mask in generate_masks(6, seed=3)]
    path.write_text("".join(json.dumps({"masks": masks[i : i + 2]}) + "\n" for i in (0, 2, 4)))
    return path


def test_prints_quality_by_tokens_and_size_and_speed(rows):
    done = CliRunner().invoke(app, ["bench", "masks", str(rows)])
    assert done.exit_code == 0, done.output
    for text in ("all (6)", "16 tokens", "boundary F", "used code vectors", "encoded masks/s"):
        assert text in done.stdout


def test_writes_json_of_the_first_masks(rows, tmp_path):
    done = CliRunner().invoke(app, ["bench", "masks", str(rows), "--limit", "4", "--json", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["masks"] == 4 and list(result["mean_iou"]["all"]) == ["1", "2", "4", "8", "16"]
    assert 0.9 < result["mean_iou"]["all"]["16"] <= 1 and result["decoded_per_second"] > 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"masks": []}', "masks: got none, expected at least one"),
        ('{"masks": [5]}', "sample 1: "),
        ("{", "sample 1: is not JSON"),
    ],
)
def test_bad_files_are_named(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(line + "\n")
    done = CliRunner().invoke(app, ["bench", "masks", str(path)])
    assert done.exit_code != 0
    assert message in str(done.exception or "") + done.output
