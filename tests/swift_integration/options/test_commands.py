"""`swift` commands in their own processes: a YAML, two training processes, another environment."""

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from paths import ROOT
from runs import COMMON, LMM, STAGE_TWO, flags, infer, read_rows, run_swift, write_rows

from himtok_plugin import MaskTokenizer

PLUGIN = ["--plugin", "himtok"]


def format_yaml(options: dict) -> str:
    lines = []
    for name, value in options.items():
        text = value if isinstance(value, bool | int | float) else str(value)
        lines.append(f"{name}: {json.dumps(text)}")
    return "\n".join(lines) + "\n"


def read_log(folder: Path) -> list[dict]:
    return read_rows(next(folder.glob("**/logging.jsonl")))


@pytest.mark.slow
def test_yaml_that_names_the_plugin_trains(world, tmp_path):
    options = {
        **COMMON,
        **LMM,
        **STAGE_TWO,
        "plugin": "himtok",
        "model": world.lmm,
        "mask_tokenizer": world.mask_tokenizer,
        "dataset": world.scenes,
        "output_dir": tmp_path / "out",
        "save_strategy": "steps",
        "save_steps": 2,
    }
    (tmp_path / "stage2.yaml").write_text(format_yaml(options))
    done = run_swift("sft", tmp_path / "stage2.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert any("loss_mask_bce" in row for row in read_log(tmp_path / "out"))
    MaskTokenizer.from_pretrained(tmp_path / "out" / "checkpoint-2" / "mask_tokenizer")


@pytest.mark.slow
def test_two_processes_train_like_one(world, stage_two, tmp_path):
    """One process and two compute the same gradient for the same rows and write the same files.

    Without `use_cpu`, transformers treats two processes without a GPU as independent and averages no loss.
    """
    rows = [world.segment(world.left), world.row("<image>All.", "<mask> <mask>", masks=[world.left, world.right])] * 2
    options = {
        **COMMON,
        **LMM,
        "mask_loss_weight": 1,
        "mask_dice_weight": 0,
        "use_cpu": True,
        "model": stage_two[1],
        "dataset": write_rows(tmp_path / "rows.jsonl", rows),
        "max_grad_norm": 1e9,
        "max_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "train_dataloader_shuffle": False,
        "dataset_shuffle": False,
    }
    logs = {}
    for processes in (1, 2):
        own = {"output_dir": tmp_path / str(processes), "per_device_train_batch_size": 4 // processes}
        environment = {}
        if processes > 1:
            own["ddp_backend"] = "gloo"
            environment = {"NPROC_PER_NODE": "2", "MASTER_PORT": "29713"}
        done = run_swift("sft", *PLUGIN, *flags(**{**options, **own}), cwd=tmp_path, **environment)
        assert done.returncode == 0, done.stderr[-3000:]
        logs[processes] = read_log(tmp_path / str(processes))[0]
    for key in ("loss", "grad_norm"):
        assert logs[2][key] == pytest.approx(logs[1][key], rel=1e-3), key
    names = [{f.name for f in (tmp_path / str(n) / "checkpoint-1" / "mask_tokenizer").iterdir()} for n in (1, 2)]
    assert names[0] == names[1]


@pytest.mark.slow
def test_stage_one_in_two_processes_saves_one_codebook(world, tmp_path):
    options = {
        **COMMON,
        "model": world.mask_tokenizer,
        "dataset": world.mask_rows,
        "output_dir": tmp_path / "out",
        "max_steps": 3,
        "save_strategy": "steps",
        "save_steps": 3,
        "use_cpu": True,
        "ddp_backend": "gloo",
    }
    done = run_swift("sft", *PLUGIN, *flags(**options), cwd=tmp_path, NPROC_PER_NODE="2", MASTER_PORT="29717")
    assert done.returncode == 0, done.stderr[-3000:]
    MaskTokenizer.from_pretrained(tmp_path / "out" / "checkpoint-3")


@pytest.fixture
def other_environment(tmp_path):
    """A virtual environment with this package in its own site-packages, and with all packages of this environment."""
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
    python = folder / "bin" / "python"
    query = [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    site = Path(subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip())
    # A path in a .pth file is added as it is: the .pth files over there, an editable install among them, do not run.
    (site / "base.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "himtok_plugin", site / "himtok_plugin", ignore=ignored)
    shutil.copy(ROOT / "himtok_plugin_startup.pth", site)
    return python, site


@pytest.mark.slow
def test_checkpoint_infers_in_another_environment(stage_two, world, tmp_path, other_environment):
    python, site = other_environment
    options = {"model": stage_two[1], "val_dataset": world.scenes, "result_path": tmp_path / "out.jsonl"}
    options |= {"max_new_tokens": 48, "temperature": 0, "stream": False, "max_batch_size": 8}
    code = "import sys; sys.argv[0] = 'swift'; from swift.cli.main import cli_main; cli_main()"
    import os

    clean = {name: value for name, value in os.environ.items() if name not in ("HIMTOK_ACTIVE_PLUGINS", "PYTHONPATH")}
    done = subprocess.run(
        [python, "-c", code, "infer", *PLUGIN, *flags(**options)],
        env={**clean, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert str(site / "himtok_plugin" / "plugin" / "himtok.py") in done.stdout + done.stderr
    here = infer(world.scenes, tmp_path / "here.jsonl", model=stage_two[1], max_batch_size=8)
    there = read_rows(tmp_path / "out.jsonl")
    assert [[m["codes"] for m in row["masks"]] for row in there] == [[m["codes"] for m in row["masks"]] for row in here]


@pytest.mark.slow
def test_unknown_option_and_bad_value_end_the_command_with_a_message(world, tmp_path):
    options = {"model": world.lmm, "mask_tokenizer": world.mask_tokenizer, "dataset": world.scenes}
    done = run_swift("sft", *PLUGIN, *flags(**options, mask_decoding="medium"), cwd=tmp_path)
    assert done.returncode != 0
    assert "mask_decoding" in done.stderr and "medium" in done.stderr
