"""A conversion needs memory for its largest weights file, not for the whole model."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import EXAMPLES

EXAMPLE = EXAMPLES / "08_measure_conversion_memory.py"
SHARDS = 6


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux reports a process's peak there")
@pytest.mark.parametrize("file_format", ["safetensors", "bin"])
def test_a_conversion_needs_memory_for_one_shard(tmp_path, file_format):
    options = ["--gb", "0.3", "--shards", str(SHARDS), "--format", file_format, "--output", tmp_path]
    done = subprocess.run([sys.executable, EXAMPLE, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    largest = int(re.search(rf"{SHARDS} shards, .* the largest (\d+) MiB", done.stdout)[1])
    assert 40 < largest < 70  # well above the memory of a late import
    growth = float(re.search(r"MiB, ([\d.]+) of the largest shard", done.stdout)[1])
    # About 1 for the shard and 1 for late imports, of which old releases have more; the whole model would be 6.
    assert growth < 3, done.stdout
    assert (tmp_path / "converted" / "config.json").is_file()
    assert len(list((tmp_path / "converted").glob("model-*.safetensors"))) == SHARDS
