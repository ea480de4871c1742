"""ms-swift is told of the plugin before anything of it is imported; a tiny world is built once for all tests."""

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
    """Every test leaves the environment as it found it.

    `datasets` leaves a copy in the place of `os.environ`, in which `monkeypatch` would not undo what it has set, and
    transformers sets variables of its own (``ACCELERATE_USE_FSDP``), which decide how a later run trains.
    """
    before, content = os.environ, dict(os.environ)
    yield
    os.environ = before  # noqa: B003 the mapping that was there, not a plain one
    os.environ.clear()
    os.environ.update(content)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    from runs import World

    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def stage_two(world):
    """A run that has learned the scenes' answers by heart: (ms-swift's result, checkpoint)."""
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
    """One step on rows, by default the world's scenes."""
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
