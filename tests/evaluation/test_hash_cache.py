"""hash_cache.py: weights are read once, and again when a file may have changed."""

import os
import subprocess
import sys
import time

import pytest

from himtok_plugin.evaluation import hash_cache, provenance
from himtok_plugin.evaluation.provenance import checkpoint_hash

LONG_AGO = time.time() - 3600


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hash_cache, "_remembered", {})
    # The time of the last change of the inode cannot be set, so files of this test would not be old enough.
    monkeypatch.setattr(hash_cache, "UNSETTLED_NS", -(10**12))
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    os.utime(folder / "model.safetensors", (LONG_AGO, LONG_AGO))
    return folder


@pytest.fixture
def reads(monkeypatch):
    """Count how often contents are read."""
    found, compute = [], provenance._hash_content
    monkeypatch.setattr(provenance, "_hash_content", lambda named: found.append(named) or compute(named))
    return found


def forget(monkeypatch):
    """As in another process: only the cache folder is left."""
    monkeypatch.setattr(hash_cache, "_remembered", {})


def test_weights_are_read_once_in_all_processes(checkpoint, reads, monkeypatch):
    hashes = [checkpoint_hash([str(checkpoint)]) for _ in range(3)]
    forget(monkeypatch)
    hashes.append(checkpoint_hash([str(checkpoint)]))
    assert len(set(hashes)) == 1 and len(reads) == 1
    assert sorted(path.name for path in checkpoint.iterdir()) == ["model.safetensors"]  # nothing is written beside it


@pytest.mark.parametrize("same_time", [False, True])
def test_changed_weights_of_the_same_size_are_read_again(checkpoint, reads, monkeypatch, same_time):
    before = checkpoint_hash([str(checkpoint)])
    (checkpoint / "model.safetensors").write_bytes(b"WEIGHTS")
    if same_time:  # as `cp --preserve` and `rsync --times` set it
        os.utime(checkpoint / "model.safetensors", (LONG_AGO, LONG_AGO))
    forget(monkeypatch)
    assert checkpoint_hash([str(checkpoint)]) != before and len(reads) == 2


def test_weights_that_were_just_written_are_not_remembered(checkpoint, reads, monkeypatch):
    monkeypatch.setattr(hash_cache, "UNSETTLED_NS", 2_000_000_000)
    (checkpoint / "model.safetensors").write_bytes(b"new")
    assert checkpoint_hash([str(checkpoint)]) == checkpoint_hash([str(checkpoint)]) and len(reads) == 2


def test_name_of_a_file_is_part_of_what_is_remembered(checkpoint):
    (checkpoint / "mask_tokenizer").mkdir()
    (checkpoint / "model.safetensors").rename(checkpoint / "mask_tokenizer" / "model.safetensors")
    assert checkpoint_hash([str(checkpoint)]) != checkpoint_hash([str(checkpoint / "mask_tokenizer")])


@pytest.mark.parametrize("content", ["", "not a hash", "\udcff"])
def test_damaged_cache_is_not_used(checkpoint, reads, monkeypatch, content):
    before = checkpoint_hash([str(checkpoint)])
    (file,) = (checkpoint.parent / "cache").rglob("hashes/*")
    file.write_text(content, errors="surrogateescape")
    forget(monkeypatch)
    assert checkpoint_hash([str(checkpoint)]) == before and len(reads) == 2


def test_cache_folder_that_cannot_be_written_is_no_error(checkpoint, reads, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert checkpoint_hash([str(checkpoint)]) == checkpoint_hash([str(checkpoint)]) and len(reads) == 1


def test_several_processes_can_write_the_cache_at_once(checkpoint):
    code = (
        "import sys; from himtok_plugin.evaluation import hash_cache; hash_cache.UNSETTLED_NS = -(10**12)\n"
        "from himtok_plugin.evaluation.provenance import checkpoint_hash\n"
        "print(checkpoint_hash([sys.argv[1]]))"
    )
    command = [sys.executable, "-c", code, str(checkpoint)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert {process.communicate(timeout=120)[0].strip() for process in running} == {checkpoint_hash([str(checkpoint)])}
    assert len(list((checkpoint.parent / "cache").rglob("hashes/*"))) == 1
