"""Masks per second of `swift deploy` with ms-swift's own engine and with vLLM: the same requests, one thread each.

    PYTHONPATH=tests:tests/swift_integration python tests/swift_integration/vllm_engine/measure_speed.py

in the environment of `make_environment.sh`. Prints a row of docs/results.md for each engine.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from chat import CLIENTS, ask_all
from servers import deployed
from vllm_servers import ENVIRONMENT, MAX_NEW_TOKENS, SERVED_NAME, deployed_on_vllm

from himtok_plugin.data.generated.scenes import generate_scenes, scene_row
from himtok_plugin.resources import default_checkpoint

SCENES = 64
SEEDS = (1234, 1235, 1236)  # new scenes for every run, because vLLM remembers prompts
WARM_UP_SEED = 1233


def write_rows(folder: Path, seed: int) -> list[dict[str, Any]]:
    """Scenes as dataset rows, with image files in `folder`."""
    rows = []
    for i, scene in enumerate(generate_scenes(SCENES, seed)):
        file = folder / f"{seed}_{i}.png"
        scene.image.save(file)
        rows.append(scene_row(scene, str(file)))
    return rows


def measure(address: str, folder: Path) -> tuple[float, float]:
    """Median of masks and of generated tokens per second."""
    ask_all(address, write_rows(folder, WARM_UP_SEED))
    masks, tokens = [], []
    for seed in SEEDS:
        rows = write_rows(folder, seed)
        start = time.perf_counter()
        answers = ask_all(address, rows)
        seconds = time.perf_counter() - start
        masks.append(sum(len(answer.choices[0].message.segments) for answer in answers) / seconds)
        tokens.append(sum(answer.usage.completion_tokens for answer in answers) / seconds)
    return statistics.median(masks), statistics.median(tokens)


def main() -> None:
    options = {"model": default_checkpoint(), "max_new_tokens": MAX_NEW_TOKENS, "temperature": 0}
    own = {"served_model_name": SERVED_NAME, "torch_dtype": "float32", "max_batch_size": CLIENTS}
    # Without binding threads to cores, vLLM uses as many as OMP_NUM_THREADS says, which the servers set to 1.
    os.environ.update(ENVIRONMENT, VLLM_CPU_OMP_THREADS_BIND="nobind")
    print("| engine | masks per second | tokens per second |\n|---|---|---|")
    for name, deploy, further in (("ms-swift's own", deployed, own), ("vLLM", deployed_on_vllm, {})):
        with tempfile.TemporaryDirectory() as folder, deploy(Path(folder), **options, **further) as address:
            masks, tokens = measure(address, Path(folder))
        print(f"| {name} | {masks:.1f} | {tokens:.0f} |", flush=True)


if __name__ == "__main__":
    main()
