"""What the README shows runs as it stands there."""

import re
import subprocess
import sys

import numpy as np
from paths import PACKAGE, ROOT
from PIL import Image
from skimage import data

from himtok_plugin.resources import config_names

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_snippets_run(tmp_path):
    Image.fromarray(~data.horse()).save(tmp_path / "mask.png")
    snippets = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert snippets
    check = "\nassert restored[0].shape == masks[0].shape\nassert restored[0].any()\n"
    for snippet in snippets:
        subprocess.run([sys.executable, "-c", snippet + check], cwd=tmp_path, check=True)


def test_round_trip_of_the_shell_runs(tmp_path):
    Image.fromarray(~data.horse()).save(tmp_path / "mask.png")
    command = [sys.executable, "-c", "from himtok_plugin.cli import main; main()"]
    text = subprocess.run([*command, "encode", "mask.png"], cwd=tmp_path, check=True, capture_output=True, text=True)
    (tmp_path / "answer.txt").write_text(text.stdout)
    decode = ["decode", "answer.txt", "--size", "328", "400", "--output", "masks"]
    subprocess.run([*command, *decode], cwd=tmp_path, check=True)
    assert np.asarray(Image.open(tmp_path / "masks" / "mask_0.png")).shape == (328, 400)


def test_every_config_that_is_named_exists():
    named = set(re.findall(r"swift_configs/(\w+)\.yaml", README))
    assert named and named <= set(config_names())


def test_every_file_of_the_tree_exists():
    tree = README.split("## Where to change what")[1].split("```")[1]
    package = PACKAGE
    files = re.findall(r"\b(\w+\.py)\b", tree)
    assert files
    for name in files:
        assert list(package.rglob(name)), name
