"""Memory: a conversion holds a tensor, not a file."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import EXAMPLES

EXAMPLE = EXAMPLES / "08_convert_in_little_memory.py"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells a process's peak there")
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_conversion_grows_by_less_than_the_largest_shard(tmp_path, kind):
    command = [sys.executable, EXAMPLE, "--gb", "0.12", "--shards", "3", "--format", kind, "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    largest = int(re.search(r"3 shards, .* the largest (\d+) MiB", done.stdout)[1])
    assert 30 < largest < 60  # well above what importing a module or two costs
    # Loaded whole, a file would cost its size and what is made of it.
    assert float(re.search(r"MiB, ([\d.]+) of the largest shard", done.stdout)[1]) < 1, done.stdout
    assert (tmp_path / "converted" / "config.json").is_file()
    assert len(list((tmp_path / "converted").glob("model-*.safetensors"))) == 3
