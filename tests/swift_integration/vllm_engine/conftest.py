"""What all tests under vLLM need: a checkpoint, scenes, the default engine's answers, servers.

`pytest -m vllm` runs these tests, in the environment that `make_environment.sh` makes. They start vLLM
several times, which takes a minute each on a CPU.
"""

import importlib.util
import os
from pathlib import Path

import pytest

from himtok_plugin.resources import default_checkpoint

SCENES = 64
UNSEEN_SEED = 1234  # neither of the seeds that the shipped checkpoint was trained and tested with
SCRIPT = Path(__file__).with_name("make_environment.sh").relative_to(Path(__file__).parents[3])


@pytest.fixture(scope="session", autouse=True)
def vllm_is_installed():
    if importlib.util.find_spec("vllm") is None:
        pytest.skip(f"vllm is not installed; `bash {SCRIPT} FOLDER` makes an environment that has it")
    from vllm_servers import ENVIRONMENT

    os.environ.update(ENVIRONMENT)


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """A full checkpoint that segments scenes: the one that the package ships."""
    return default_checkpoint()


@pytest.fixture(scope="session")
def scene_rows(tmp_path_factory) -> Path:
    """Rows of `SCENES` scenes that the checkpoint has not seen."""
    from runs import write_rows

    from himtok_plugin.data.generated.scenes import generate_scenes, scene_row

    root = tmp_path_factory.mktemp("scenes")
    rows = []
    for i, scene in enumerate(generate_scenes(SCENES, UNSEEN_SEED)):
        scene.image.save(root / f"{i}.png")
        rows.append(scene_row(scene, str(root / f"{i}.png")))
    return write_rows(root / "rows.jsonl", rows)


@pytest.fixture(scope="session")
def default_answers(checkpoint, scene_rows, tmp_path_factory) -> list[dict]:
    """Results of `swift infer` with ms-swift's default engine, greedy."""
    from runs import infer
    from vllm_servers import MAX_NEW_TOKENS

    return infer(
        scene_rows,
        tmp_path_factory.mktemp("default") / "out.jsonl",
        model=checkpoint,
        max_batch_size=16,
        max_new_tokens=MAX_NEW_TOKENS,
    )
