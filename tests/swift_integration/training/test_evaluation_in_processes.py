"""Inference in two processes (NPROC_PER_NODE=2 `swift infer`), resumed, and scored by `himtok eval`."""

import json
import subprocess
import sys

import pytest
from runs import flags, infer, read_rows, run_swift, write_rows

from himtok_plugin.evaluation.evaluate import evaluate_results

PROCESSES = "2"


def infer_in_processes(rows, out, model, **options):
    """Run `swift infer` under torchrun."""
    options = {"max_new_tokens": 24, "temperature": 0, "stream": False, "write_batch_size": 5, **options}
    argv = flags(plugin="himtok", model=model, val_dataset=rows, result_path=out, remove_unused_columns=True,
                 load_from_cache_file=False, **options)  # fmt: skip
    done = run_swift("infer", *argv, cwd=out.parent, timeout=300, NPROC_PER_NODE=PROCESSES, MASTER_PORT="29741")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return read_rows(out)


def by_number(rows):
    return sorted(rows, key=lambda row: row["row"])


@pytest.mark.slow
def test_two_processes_infer_resume_and_score_as_one_does(stage_two, world, tmp_path):
    # 11 rows in batches of 5: the last batch has one row for two processes.
    rows = write_rows(tmp_path / "rows.jsonl", read_rows(world.scenes)[:11])
    expected = infer(rows, tmp_path / "one.jsonl", model=stage_two[1], max_new_tokens=24)
    found = infer_in_processes(rows, tmp_path / "two.jsonl", stage_two[1])
    assert [row["row"] for row in by_number(found)] == list(range(1, 12))
    for answered, wanted in zip(by_number(found), expected, strict=True):
        assert answered["response"] == wanted["response"]
        assert [mask["counts"] for mask in answered["masks"]] == [mask["counts"] for mask in wanted["masks"]]

    part = write_rows(tmp_path / "part.jsonl", [row for row in found if row["row"] not in (2, 7, 11)])
    resumed = infer_in_processes(rows, part, stage_two[1], resume_result=True)
    assert len(resumed) == 11
    assert [row["response"] for row in by_number(resumed)] == [row["response"] for row in expected]

    # One result is missing: its row is a failure, in whichever process.
    lost = write_rows(tmp_path / "lost.jsonl", resumed[1:])
    whole = evaluate_results(lost, rows=rows, boundary=False)
    assert len(whole.failures) == 1
    command = ["-m", "torch.distributed.run", "--nproc_per_node", PROCESSES, "--master_port", "29743"]
    arguments = ["-m", "himtok_plugin.cli", "eval", lost, "--rows", rows, "--no_boundary", "--report", tmp_path / "r"]
    argv = [sys.executable, *command, *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["scores"] == pytest.approx(whole.scores) and report["failures"] == whole.failures
    assert done.stdout.count("has no result") == 1
