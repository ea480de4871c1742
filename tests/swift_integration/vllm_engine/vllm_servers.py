"""`vllm serve` and `swift … --infer_backend vllm` for the tests of this folder."""

from contextlib import contextmanager
from pathlib import Path

from runs import flags
from servers import deployed, find_free_port, started, wait_until_healthy

START_SECONDS = 900  # one hundred on an idle machine with two cores
SERVED_NAME = "segmenter"
MAX_NEW_TOKENS = 96  # of the tests' questions: three masks and the text around them
# Variables of its processes. vLLM takes much of the memory for the keys and values of attention unless it is told a
# number of GiB.
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
# Of the engine, for the plain server and for `--infer_backend vllm`. float32 and no compilation: on CPUs the quickest
# start, and sums as in the default engine.
ENGINE = {"max_model_len": 1024, "enforce_eager": True}
SWIFT_ENGINE = {
    "infer_backend": "vllm",
    "torch_dtype": "float32",
    **{f"vllm_{name}": value for name, value in ENGINE.items()},
}


@contextmanager
def served_by_vllm(root: Path, model: Path, *further):
    """Address of the plain server `vllm serve MODEL`, `http://127.0.0.1:PORT/v1`; its log is `root/log.txt`.

    It knows nothing of this package. `further` are more arguments of the command.
    """
    port, log = find_free_port(), root / "log.txt"
    options = {"host": "127.0.0.1", "port": port, "served-model-name": SERVED_NAME, "dtype": "float32"}
    options["max-model-len"] = ENGINE["max_model_len"]
    argv = ["serve", model, *flags(**options), "--enforce-eager", *further]
    with started(*argv, cwd=root, log=log, program="vllm") as process:
        yield wait_until_healthy(port, process, log, START_SECONDS)


def deployed_on_vllm(root: Path, **options):
    """Address of `swift deploy --plugin himtok --infer_backend vllm`, like `servers.deployed`."""
    return deployed(root, START_SECONDS, **SWIFT_ENGINE, served_model_name=SERVED_NAME, **options)
