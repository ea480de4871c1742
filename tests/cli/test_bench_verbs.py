"""`himtok bench loss`, `step` and `infer`: tables, JSON and exit status."""

import json

import pytest

from himtok_plugin.benchmarks import inference

LOSS = ("bench", "loss", "--batch", 2, "--length", 24, "--vocabulary", 1500, "--tokens", 8, "--repeats", 1)
STEP = ("bench", "step", "--lmm", "tiny", "--size", "tiny", "--batch", 3, "--length", 40, "--tokens", 8, "--repeats", 1)
ON_CPU = ("--device", "cpu")


def test_loss_prints_a_table_and_writes_json(himtok, tmp_path):
    status, out, _ = himtok(*LOSS, *ON_CPU, "--dtype", "float32", "--json", tmp_path / "bench.json")
    assert status == 0 and all(title in out for title in ("himtok", "plain", "seconds", "ratio"))
    result = json.loads((tmp_path / "bench.json").read_text())
    assert result["himtok"]["loss"] == pytest.approx(result["plain"]["loss"], abs=1e-4)


def test_loss_prints_json_alone_on_stdout(himtok):
    status, out, _ = himtok(*LOSS, *ON_CPU, "--json", "-")
    assert status == 0 and json.loads(out)["settings"]["dtype"] == "bfloat16"


def test_step_prints_a_table_or_json(himtok):
    status, out, _ = himtok(*STEP, *ON_CPU, "--dtype", "float32")
    assert status == 0 and all(title in out for title in ("padded", "packed", "MFU", "tokens/s"))
    status, out, _ = himtok(*STEP, *ON_CPU, "--dtype", "float32", "--json", "-")
    assert status == 0 and json.loads(out)["packed"]["model_flops_utilisation"] is None


def test_infer_prints_json_alone_on_stdout(himtok, monkeypatch):
    monkeypatch.setattr(inference, "BATCHES", (1,))
    status, out, _ = himtok("bench", "infer", *ON_CPU, "--repeats", 1, "--json", "-")
    rows = json.loads(out)
    assert not status and [row["part"] for row in rows] == ["encode", "decode", "decode soft"]
    assert set(rows[0]) == {"part", "size", "device", "batch", "masks", "seconds", "slowest", "masks_per_second"}


def test_infer_prints_a_table(himtok):
    status, out, _ = himtok("bench", "infer", *ON_CPU, "--repeats", 1, "--batch", 2)
    assert not status and "masks/s" in out and "decode soft" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("loss", "--batch", 0), "batch: got 0, expected an integer >= 1"),
        (("step", "--lmm", "huge"), "lmm: got 'huge', expected one of tiny, 1b, 2b"),
        (("infer", "--checkpoint", "nothing"), "nothing: expected the folder of a checkpoint, found none"),
    ],
)
def test_bad_settings_are_one_line_and_status_2(himtok, arguments, message):
    status, out, err = himtok("bench", *arguments)
    assert status == 2 and not out and err == f"error: {message}\n"
