"""Activates the plugin before ms-swift is imported; builds the shared tiny models and datasets once per session."""

import importlib.util
import os

import pytest

collect_ignore_glob = []
if importlib.util.find_spec("swift") is None:
    collect_ignore_glob.append("test_*.py")
else:
    from himtok_plugin import startup

    startup.activate("himtok")


@pytest.fixture(autouse=True)
def environment():
    """Restore the environment variables after every test.

    `datasets` replaces `os.environ` by a copy, in which `monkeypatch` does not undo its changes, and transformers sets
    variables (``ACCELERATE_USE_FSDP``) that change how a later run trains.
    """
    before, content = os.environ, dict(os.environ)
    yield
    os.environ = before  # noqa: B003 the original mapping, not a copy
    os.environ.clear()
    os.environ.update(content)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    from runs import World

    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def stage_two(world):
    """A run that has memorised the scenes' answers: (ms-swift's result, checkpoint)."""
    from runs import LMM, STAGE_TWO, sft

    result = sft(
        model=world.lmm,
        mask_tokenizer=world.mask_tokenizer,
        dataset=world.scenes,
        output_dir=world.root / "stage_two",
        max_steps=120,
        learning_rate=5e-3,
        per_device_train_batch_size=16,
        save_strategy="steps",
        save_steps=120,
        **LMM,
        **STAGE_TWO,
    )
    return result, world.root / "stage_two" / "checkpoint-120"


@pytest.fixture
def train(world, tmp_path):
    """Train one step on rows, by default on the scenes of `world`."""
    from runs import LMM, sft, write_rows

    def run(rows=None, **options):
        defaults = {
            "model": world.lmm,
            "mask_tokenizer": world.mask_tokenizer,
            "dataset": world.scenes if rows is None else write_rows(tmp_path / "rows.jsonl", rows),
            "output_dir": tmp_path / "out",
            "max_steps": 1,
            **LMM,
        }
        return sft(**{**defaults, **options})

    return run
