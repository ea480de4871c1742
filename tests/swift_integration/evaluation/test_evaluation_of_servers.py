"""`swift eval --eval_url` of a running server: killed and resumed, and with a refused request."""

import json
import signal

import pytest
from runs import flags, infer, read_rows, run_swift, write_rows
from servers import Gate, deployed, end, started

pytest.importorskip("evalscope")

from himtok_plugin.evaluation.evaluate import evaluate_results
from himtok_plugin.evaluation.protocols import find_protocol

KEY = "secret"
ROWS, BEFORE_THE_KILL = 9, 4
CALIBRATION = ("ECE", "Brier", "spearman", "scored_masks")  # metrics of the masks' scores


@pytest.fixture(scope="module")
def rows(world, tmp_path_factory):
    """Write scenes with a different question each."""
    scenes = read_rows(world.scenes)[:ROWS]
    for i, row in enumerate(scenes):
        row["messages"][0]["content"] += f" Scene {i}."
    return write_rows(tmp_path_factory.mktemp("rows") / "scenes.jsonl", scenes)


@pytest.fixture(scope="module")
def gate(stage_two, tmp_path_factory):
    """Start a server of the checkpoint behind a gate, which counts and refuses requests."""
    root = tmp_path_factory.mktemp("server")
    options = {"model": stage_two[1], "api_key": KEY, "torch_dtype": "float32"}
    with deployed(root, **options) as url, Gate(url).serving() as gate:
        yield gate


def arguments(gate, rows, model, out, **extra):
    """Return the arguments of a `swift eval`; `extra` are its `extra_eval_args`."""
    return flags(
        plugin="himtok",
        model=model,
        eval_url=gate.url,
        api_key=KEY,
        eval_dataset="refcoco_seg",
        eval_dataset_args=json.dumps({"refcoco_seg": {"local_path": str(rows)}}),
        eval_output_dir=out,
        eval_num_proc=1,
        eval_generation_config=json.dumps({"max_tokens": 24, "temperature": 0, "retries": 1}),
        extra_eval_args=json.dumps(extra),
    )


def scenes_asked(gate):
    """Return the numbers of the scenes in the requests since the gate was set."""
    return [int(question.rsplit("Scene ", 1)[1].split(".")[0]) for question in gate.questions]


def own_report(folder):
    (file,) = folder.rglob("himtok/refcoco_seg_scenes.json")
    return json.loads(file.read_text())


@pytest.mark.slow
def test_killed_evaluation_resumes_and_a_refused_request_is_listed_as_failure(gate, rows, stage_two, tmp_path):
    model, run = stage_two[1], tmp_path / "eval" / "native"

    gate.let_through(BEFORE_THE_KILL)
    first = arguments(gate, rows, model, tmp_path / "eval", no_timestamp=True)
    with started("eval", *first, cwd=tmp_path, log=tmp_path / "killed.txt") as process:
        while not gate.stuck.wait(timeout=1):
            assert process.poll() is None, (tmp_path / "killed.txt").read_text()[-4000:]
        end(process, signal.SIGKILL)
    assert scenes_asked(gate) == list(range(BEFORE_THE_KILL + 1)) and not list(run.rglob("himtok/*.json"))

    gate.let_through(None)
    gate.refused = "Scene 7."
    resumed = arguments(gate, rows, model, tmp_path / "eval", use_cache=str(run), ignore_errors=True)
    done = run_swift("eval", *resumed, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert scenes_asked(gate) == list(range(BEFORE_THE_KILL, ROWS))
    report = own_report(run)
    assert report["failures"] == ["scenes: row 8: no prediction"] and report["scores"]["samples"] == ROWS
    assert "1 failures, in the scores as wrong answers" in done.stdout
    assert report["run"]["further"]["server"] == gate.url and report["protocol"]["name"] == "per-sentence"

    gate.let_through(None)
    gate.refused = None
    done = run_swift("eval", *resumed, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert scenes_asked(gate) == [7]
    report = own_report(run)
    assert report["failures"] == [] and report["scores"]["samples"] == ROWS

    # The results of the three runs equal those of one `swift infer`, and `himtok eval` computes the same scores.
    (result,) = run.rglob("himtok/refcoco_seg_scenes.jsonl")
    expected = infer(rows, tmp_path / "out.jsonl", model=model, max_new_tokens=24, mask_decoding="hard")
    for answered, wanted in zip(read_rows(result), expected, strict=True):
        assert answered["response"] == wanted["response"] and answered["row"] == wanted["row"]
        assert [mask["counts"] for mask in answered["masks"]] == [mask["counts"] for mask in wanted["masks"]]
    for file in (result, tmp_path / "out.jsonl"):
        scores = evaluate_results(file, find_protocol("per-sentence"), boundary=False, rows=rows).scores
        # Without log-probabilities in the request, masks have no scores.
        scores = {name: value for name, value in scores.items() if file == result or name not in CALIBRATION}
        assert scores == pytest.approx(report["scores"])
