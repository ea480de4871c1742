"""`himtok tokenize` resumed after a kill, with another input or mask tokenizer, and in several processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from coded_rows import (
    codes_in_training,
    interrupt,
    many_rows,
    random_masks,
    read_rows,
    row_of,
    save_mask,
    trained,
    with_codes,
    write_rows,
)
from tiny_models import tiny_model

from himtok_plugin.data.offline_codes import write_codes
from himtok_plugin.jobs.resumable_output import BLOCK
from himtok_plugin.masks import to_rle


def test_a_killed_run_is_resumed_and_leaves_no_process_running(himtok, folder, tmp_path):
    stuck = tmp_path / "stuck.png"
    os.mkfifo(stuck)  # reading it blocks, so that the run is killed before its end
    rows = many_rows()
    rows[70] = row_of(str(stuck))
    source, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    part = tmp_path / "out.jsonl.rank0-of-1.part"
    arguments = ["tokenize", str(source), str(out), "--mask_tokenizer", str(folder), "--batch_size", "1"]
    command = [sys.executable, "-m", "himtok_plugin.cli", *arguments, "--num_workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: part.exists() and part.read_bytes().count(b"\n") >= 40)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    readers = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = part.read_bytes()
    wait_for(lambda: not any(map(is_running, readers)))
    assert not out.exists()
    stuck.unlink()
    save_mask(stuck, random_masks(1)[0])
    status, printed, _ = himtok(*arguments, "--num_workers", "0")
    assert status == 0 and str(finished.count(b"\n")) in printed.split("finished_before")[1].splitlines()[0]
    assert out.read_bytes().startswith(finished) and read_rows(out) == with_codes(rows, tiny_model())


def wait_for(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def interrupted(tmp_path):
    """An interrupted run over 100 rows: (input, output, its part file)."""
    source, out = write_rows(tmp_path / "in.jsonl", many_rows()), tmp_path / "out.jsonl"
    interrupt(source, out, trained())
    return source, out, tmp_path / "out.jsonl.rank0-of-1.part"


def test_finished_rows_are_not_encoded_again(interrupted, tokenizer):
    source, out, part = interrupted
    finished = part.read_bytes()
    lines = finished.splitlines()
    summary = write_codes(source, out, tokenizer)
    assert summary.finished_before == len(lines) >= 50
    rest = [json.dumps(m) for row in many_rows()[len(lines) :] for m in row.get("masks", [])]
    assert sum(tokenizer.encoded) == summary.encoded == len(set(rest)) and summary.masks == len(rest)
    assert out.read_bytes().startswith(finished)
    assert read_rows(out) == with_codes(many_rows(), tiny_model())
    assert {path.name for path in out.parent.iterdir()} == {"in.jsonl", "out.jsonl", "out.jsonl.state.json"}


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_truncated_line_is_written_again(interrupted, tokenizer, cut):
    source, out, part = interrupted
    whole = part.read_bytes().rstrip(b"\n").split(b"\n")
    part.write_bytes(b"\n".join(whole)[:-cut])
    assert write_codes(source, out, tokenizer).finished_before == len(whole) - 1
    assert read_rows(out) == with_codes(many_rows(), tiny_model())


def test_a_run_killed_while_joining_its_parts_joins_them_again(tokenizer, tmp_path, monkeypatch):
    source, out = write_rows(tmp_path / "in.jsonl", many_rows()), tmp_path / "out.jsonl"
    with monkeypatch.context() as patched:
        patched.setattr("himtok_plugin.jobs.resumable_output.ResumableOutput._join", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_codes(source, out, tokenizer)
    encoded = sum(tokenizer.encoded)
    assert write_codes(source, out, tokenizer).finished_before == 100
    assert sum(tokenizer.encoded) == encoded and read_rows(out) == with_codes(many_rows(), tiny_model())


def test_a_run_with_a_complete_output_reports_that_and_encodes_nothing(himtok, folder, tmp_path):
    source, out = write_rows(tmp_path / "in.jsonl", many_rows(20)), tmp_path / "new" / "out.jsonl"
    arguments = ("tokenize", source, out, "--mask_tokenizer", folder, "--num_workers", 0)
    status, printed, err = himtok(*arguments)
    assert status == 0 and not err
    assert all(name in printed for name in ("rows", "masks", "encoded", "reused", "rejected"))
    before = out.stat().st_mtime_ns
    status, _, err = himtok(*arguments)
    assert status == 0 and "out.jsonl is complete" in err and out.stat().st_mtime_ns == before


def test_a_deleted_output_is_written_again(tokenizer, tmp_path):
    source, out = write_rows(tmp_path / "in.jsonl", many_rows(20)), tmp_path / "out.jsonl"
    write_codes(source, out, tokenizer)
    out.unlink()
    assert write_codes(source, out, tokenizer).finished_before == 0 and out.exists()


def test_two_runs_at_once_are_refused(interrupted, tokenizer):
    source, out, _ = interrupted

    def second(*_):
        with pytest.raises(ValueError, match="out.jsonl: another run is writing it"):
            write_codes(source, out, tokenizer)

    write_codes(source, out, tokenizer, on_progress=second)
    assert read_rows(out) == with_codes(many_rows(), tiny_model())


# ----- resuming from another input, mask tokenizer or output


@pytest.mark.parametrize("finished", [False, True])
def test_another_mask_tokenizer_or_input_is_refused(interrupted, tokenizer, finished):
    source, out, _ = interrupted
    if finished:
        write_codes(source, out, tokenizer)
    with pytest.raises(ValueError, match="out.jsonl: was started with mask_tokenizer [0-9a-f]{32}, got .*--overwrite"):
        write_codes(source, out, trained(seed=1))
    rows = many_rows()
    write_rows(source, rows[1:] + rows[:1])  # of the same size
    with pytest.raises(ValueError, match="out.jsonl: was started with input [0-9a-f]{32}, got"):
        write_codes(source, out, tokenizer)
    summary = write_codes(source, out, tokenizer, overwrite=True)
    assert summary.finished_before == 0 and read_rows(out) == with_codes(rows[1:] + rows[:1], tiny_model())


def test_searched_codes_are_not_mixed_with_others(himtok, folder, tmp_path):
    masks = [to_rle(mask) for mask in random_masks(3)]
    source, out = write_rows(tmp_path / "in.jsonl", [row_of(*masks)]), tmp_path / "out.jsonl"
    arguments = ("tokenize", source, out, "--mask_tokenizer", folder, "--num_workers", 0)
    assert himtok(*arguments, "--candidates", 4)[0] == 0
    nearest, searched = (codes_in_training(trained(), *masks, candidates=n) for n in (1, 4))
    assert read_rows(out)[0]["mask_codes"] == searched != nearest
    status, _, err = himtok(*arguments)
    assert status == 2 and "was started with candidates 4, got 1: expected the same" in err


def test_a_file_of_unknown_origin_is_kept(himtok, folder, tmp_path):
    source = write_rows(tmp_path / "in.jsonl", many_rows(20))
    out = write_rows(tmp_path / "out.jsonl", ["mine"])
    rows = write_rows(tmp_path / "rows.jsonl", many_rows(3))
    arguments = ("--mask_tokenizer", folder, "--num_workers", 0)
    kept = "got a file that is there already and is not rows of samples"
    for target, message in ((out, kept), (rows, "pass --overwrite"), (source, "the input itself: expected another")):
        status, printed, err = himtok("tokenize", source, target, *arguments)
        assert status == 2 and not printed and err.count("\n") == 1 and message in err
    status, _, err = himtok("tokenize", source, source, *arguments, "--overwrite")
    assert status == 2 and "the input itself" in err and len(read_rows(source)) == 20
    status, _, err = himtok("tokenize", source, out, *arguments, "--overwrite")
    assert status == 2 and kept in err and out.read_text() == "mine\n"
    assert himtok("tokenize", source, rows, *arguments, "--overwrite")[0] == 0 and len(read_rows(rows)) == 20


# ----- torchrun


def test_two_processes_of_torchrun_write_what_one_writes(folder, tokenizer, tmp_path):
    rows = many_rows(2 * BLOCK + 30)
    rows[BLOCK + 3] = "no JSON"
    source, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "two.jsonl"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    options = ["tokenize", source, out, "--mask_tokenizer", folder, "--num_workers", "0"]
    result = subprocess.run(
        [*torchrun, "-m", "himtok_plugin.cli", *map(str, options)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 1 and "rejected rows: 1, " in result.stderr, result.stderr
    assert result.stdout.count("finished_before") == 1
    alone = write_codes(source, tmp_path / "one.jsonl", tokenizer)
    for name in ("jsonl", "jsonl.rejects.jsonl"):
        assert (tmp_path / f"two.{name}").read_bytes() == (tmp_path / f"one.{name}").read_bytes()
    assert not list(tmp_path.glob("*.part"))
    assert (alone.rows, alone.rejected) == (len(rows), 1)
    again = write_codes(source, out, tokenizer)  # a complete output may be from any number of processes
    assert again.finished_before == len(rows)


def test_a_run_of_two_processes_is_not_resumed_by_one(interrupted, tokenizer):
    source, out, _ = interrupted
    state = out.with_name("out.jsonl.state.json")
    state.write_text(json.dumps({**json.loads(state.read_text()), "processes": 2}))
    with pytest.raises(ValueError, match="was started with processes 2, got 1: expected the same, or --overwrite"):
        write_codes(source, out, tokenizer)


def run_on_two_machines(tmp_path, options, folders):
    """Run `himtok tokenize` in two processes, each in its own folder, as on machines without a common disk."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "himtok_plugin.cli", "tokenize", *map(str, options)]
    variables = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for rank, folder in enumerate(folders):
        (tmp_path / folder).mkdir(exist_ok=True)
        environment = {**variables, "RANK": str(rank), "LOCAL_RANK": "0"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=tmp_path / folder, env=environment, **pipes))
    return [(process, *process.communicate(timeout=120)) for process in processes]


def test_machines_without_a_common_disk_say_so_before_they_encode(folder, tmp_path):
    source = write_rows(tmp_path / "in.jsonl", many_rows())
    options = [source, "out.jsonl", "--mask_tokenizer", folder, "--num_workers", "0"]
    for process, _, errors in run_on_two_machines(tmp_path, options, ("one", "other")):
        assert process.returncode == 2
        (line,) = [line for line in errors.splitlines() if "OUT" in line]
        assert "OUT: got 'out.jsonl', which is another folder on " in line and "expected one on a disk that all" in line
    assert not list((tmp_path / "one").iterdir()) and not list((tmp_path / "other").iterdir())
    done = run_on_two_machines(tmp_path, options, ("one", "one"))
    assert [process.returncode for process, *_ in done] == [0, 0], done
    assert [path.name for path in sorted((tmp_path / "one").iterdir())] == ["out.jsonl", "out.jsonl.state.json"]


def test_machines_with_different_inputs_say_so(folder, tmp_path):
    for name, rows in (("one", many_rows()), ("other", many_rows()[:-1])):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "in.jsonl", rows)
    options = ["in.jsonl", tmp_path / "out.jsonl", "--mask_tokenizer", folder, "--num_workers", "0"]
    for process, _, errors in run_on_two_machines(tmp_path, options, ("one", "other")):
        assert process.returncode == 2 and "IN: got 'in.jsonl' with " in errors
