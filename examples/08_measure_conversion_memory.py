"""Measure how much memory `himtok convert` needs: about as much as the largest weights file, not the whole model.

    python examples/08_measure_conversion_memory.py [--gb 2] [--shards 4] [--format bin] [--output DIR]

Generates a checkpoint in the layout of the released HiMTok model (random bfloat16 weights in InternVL2.5-8B's
proportions, with a mask tokenizer), converts it in a new process, and prints by how much the memory of that process
grew; mapped files count. Takes about a minute for 2 GB on 2 cores. Needs Linux, for /proc, and twice the size on disk,
which is freed afterwards unless --output names a folder to keep both checkpoints in.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors.torch import save_file

from himtok_plugin.internvl_chat.chat_config import MODEL_TYPE
from himtok_plugin.internvl_chat.convert import convert_chat_model
from himtok_plugin.internvl_chat.key_mapping import list_tensor_rules
from himtok_plugin.mask_tokenizer import build_mask_tokenizer
from himtok_plugin.mask_tokenizer.released_weights import CHAT_PREFIX

FILE_STEMS = {"safetensors": "model", "bin": "pytorch_model"}  # by format, as transformers names the files
GB, MIB = 10**9, 2**20
WIDTH_STEP = 64  # widths are multiples of it, so that the number of heads divides them
WIDTH, VOCABULARY_SIZE, INNER = 4096, 93577, 14336  # of the released LLM, whose ratios are kept
PIXEL_CHANNELS = 32  # a multiple of the groups of the released GroupNorm layers
VISION_SHARE = 4  # the vision model is a quarter as wide as the LLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=2.0, help="size of the weights")
    parser.add_argument("--shards", type=int, default=4, help="number of weights files")
    parser.add_argument("--format", choices=FILE_STEMS, default="safetensors", help="of the weights files")
    parser.add_argument("--output", type=Path, metavar="DIR", help="keep source and result in this folder")
    arguments = parser.parse_args()
    if not (arguments.gb > 0 and arguments.shards > 0):
        parser.error(f"--gb and --shards: got {arguments.gb} and {arguments.shards}, expected positive numbers")
    if arguments.output:
        measure(arguments, arguments.output)
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(arguments, Path(folder))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    files = generate_checkpoint(folder / "source", arguments.gb * GB, arguments.shards, arguments.format)
    sizes = [file.stat().st_size for file in files]
    print(f"{len(files)} shards, {sum(sizes) / GB:.2f} GB, the largest {max(sizes) / MIB:.0f} MiB")
    # In a new process, since this one has held the generated tensors.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        start, peak = pool.submit(convert_and_measure, folder / "source", folder / "converted").result()
    growth = peak - start
    print(f"memory of the process: {start / MIB:.0f} MiB before the conversion, {peak / MIB:.0f} MiB at its peak")
    print(f"growth: {growth / MIB:.0f} MiB, {growth / max(sizes):.2f} of the largest shard")


def convert_and_measure(source: Path, out: Path) -> tuple[int, int]:
    """Convert the checkpoint; return the memory of this process before and at its peak, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, which the imports have set
    start = read_memory("VmRSS")
    convert_chat_model(str(source), out, skip_tokenizer=True)
    return start, read_memory("VmHWM")


def read_memory(name: str) -> int:
    """Return a field of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def generate_checkpoint(folder: Path, size: float, shards: int, file_format: str) -> list[Path]:
    """Write a checkpoint of about `size` bytes and return its weights files."""
    folder.mkdir(parents=True, exist_ok=True)
    config = build_config_of_size(size)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shapes = dict(list_shapes(config))
    parts: list[dict[str, tuple[int, ...]]] = [{} for _ in range(shards)]
    done, total = 0, sum(count_bytes(shape) for shape in shapes.values())
    for key, shape in shapes.items():
        parts[done * shards // total][key] = shape
        done += count_bytes(shape)
    parts = [part for part in parts if part]
    stem = FILE_STEMS[file_format]
    files = [folder / f"{stem}-{i:05d}-of-{len(parts):05d}.{file_format}" for i in range(1, len(parts) + 1)]
    save = torch.save if file_format == "bin" else save_file
    for file, part in zip(files, parts, strict=True):
        save({key: torch.empty(shape, dtype=torch.bfloat16).normal_() for key, shape in part.items()}, file)
    weight_map = {key: file.name for file, part in zip(files, parts, strict=True) for key in part}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.{file_format}.index.json").write_text(json.dumps(index))
    return files


def build_config_of_size(size: float) -> dict:
    """Build a configuration whose tensors take about `size` bytes, which grow with the square of the width."""
    released = sum(count_bytes(rule.shape) for rule in list_tensor_rules(build_config(WIDTH)))
    width = WIDTH * math.sqrt(size / released)
    return build_config(max(round(width / WIDTH_STEP), 1) * WIDTH_STEP)


def build_config(width: int) -> dict:
    """Build the configuration of a chat model whose LLM has this width."""
    return {
        "model_type": MODEL_TYPE,
        "template": "internvl2_5",
        "ps_version": "v2",
        "downsample_ratio": 0.5,
        "force_image_size": 448,
        "vision_config": {
            "hidden_size": width // VISION_SHARE,
            "intermediate_size": width,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 448,
            "patch_size": 14,
            "norm_type": "layer_norm",
            "qkv_bias": True,
            "qk_normalization": False,
        },
        "llm_config": {
            "architectures": ["InternLM2ForCausalLM"],
            "vocab_size": VOCABULARY_SIZE * width // WIDTH,
            "hidden_size": width,
            "intermediate_size": INNER * width // WIDTH,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "rope_theta": 1e6,
            "rope_scaling": {"type": "dynamic", "factor": 2.0},
            "eos_token_id": 2,
        },
    }


def list_shapes(config: dict) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the keys and shapes of a chat model and of the mask tokenizer in it."""
    for rule in list_tensor_rules(config):
        yield rule.source, rule.shape
    with torch.device("meta"):
        masks = build_mask_tokenizer("tiny", pixel_channels=PIXEL_CHANNELS).state_dict()
    for key, value in masks.items():
        yield f"{CHAT_PREFIX}{key}", tuple(value.shape)


def count_bytes(shape: tuple[int, ...]) -> int:
    """Return the size of a bfloat16 tensor."""
    return math.prod(shape) * torch.bfloat16.itemsize


if __name__ == "__main__":
    main()
