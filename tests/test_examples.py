"""The examples run as they stand; the two that train are marked slow."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *arguments, cwd):
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_round_trip_prints_text_and_draws_prefixes(tmp_path):
    printed = run("01_round_trip.py", cwd=tmp_path)
    assert printed.startswith("<|mt_start|><|mt_")
    assert " 8 tokens: IoU" in printed
    assert Image.open(tmp_path / "round_trip.png").width > 200


@pytest.mark.slow
def test_photographs_are_trained_and_scored(tmp_path):
    printed = run("02_learn_photographs.py", "--output", tmp_path, "--steps", 6, 4, cwd=tmp_path)
    assert "ceiling of the stage 2 tokenizer" in printed and "gIoU" in printed


@pytest.mark.slow
def test_reconstruction_is_trained_and_measured(tmp_path):
    printed = run("03_reconstruct_masks.py", "--output", tmp_path, "--steps", 6, cwd=tmp_path)
    assert " 8 tokens: mean IoU" in printed
