"""Convert a large chat model in little memory, and measure how little.

    python examples/08_convert_in_little_memory.py [--gb 2] [--shards 4] [--format bin] [--output DIR]

Generates a checkpoint of the released HiMTok model's layout (InternVL2.5-8B's proportions at smaller widths, random
bfloat16 weights, a mask tokenizer among them), converts it in a process of its own, and prints how far the memory of
that process rose above where it stood before. Files read into memory by mapping count as well. Needs Linux, whose
/proc tells the peak, and twice the size on disk, which is free again afterwards unless --output says where to keep it.
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

from himtok_plugin.internvl_chat.chat_config import MODEL_TYPE
from himtok_plugin.internvl_chat.convert import convert_chat_model
from himtok_plugin.internvl_chat.layout import chat_layout
from himtok_plugin.internvl_chat.source import TensorInfo
from himtok_plugin.internvl_chat.weights import SafetensorsWriter
from himtok_plugin.mask_tokenizer import build_mask_tokenizer
from himtok_plugin.mask_tokenizer.released_weights import CHAT_PREFIX

FORMATS = {"safetensors": "model", "bin": "pytorch_model"}  # how names of such files begin, as transformers has them
GB, MIB = 10**9, 2**20
WIDTH_STEP = 64  # widths are multiples of it, so that heads divide them
WIDTH, ROWS, INNER = 4096, 93577, 14336  # of the released LLM; here its ratios are kept
PIXEL_CHANNELS = 32  # released weights come in groups of as many
VISION_PART = 4  # the vision model is a quarter as wide as the LLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=2.0, help="size of the weights")
    parser.add_argument("--shards", type=int, default=4, help="files that hold them")
    parser.add_argument("--format", choices=FORMATS, default="safetensors", help="of those files")
    parser.add_argument("--output", type=Path, metavar="DIR", help="keep source and result there")
    arguments = parser.parse_args()
    if not (arguments.gb > 0 and arguments.shards > 0):
        parser.error("--gb and --shards: expected positive numbers")
    if arguments.output:
        measure(arguments, arguments.output)
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(arguments, Path(folder))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    files = generate(folder / "source", arguments.gb * GB, arguments.shards, arguments.format)
    sizes = [file.stat().st_size for file in files]
    print(f"{len(files)} shards, {sum(sizes) / GB:.2f} GB, the largest {max(sizes) / MIB:.0f} MiB")
    # A fresh process: this one has held tensors of its own.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        start, peak = pool.submit(convert_and_watch, folder / "source", folder / "converted").result()
    grown = peak - start
    print(f"converting: {start / MIB:.0f} MiB before, {peak / MIB:.0f} MiB at most")
    print(f"peak growth: {grown / MIB:.0f} MiB, {grown / max(sizes):.2f} of the largest shard")


def convert_and_watch(source: Path, out: Path) -> tuple[int, int]:
    """Convert; bytes of this process before, and at most while it went on."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what was imported
    start = memory("VmRSS")
    convert_chat_model(str(source), out, skip_tokenizer=True)
    return start, memory("VmHWM")


def memory(name: str) -> int:
    """A field of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def generate(folder: Path, size: float, shards: int, kind: str) -> list[Path]:
    """Write a checkpoint of about `size` bytes, and return its weights files."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of_size(size)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = dict(tensors_of(config))
    parts = [{} for _ in range(shards)]
    done, total = 0, sum(bytes_of(shape) for shape in tensors.values())
    for key, shape in tensors.items():
        parts[done * shards // total][key] = TensorInfo(shape, torch.bfloat16)
        done += bytes_of(shape)
    parts = [part for part in parts if part]
    stem = FORMATS[kind]
    files = [folder / f"{stem}-{i:05d}-of-{len(parts):05d}.{kind}" for i in range(1, len(parts) + 1)]
    for file, part in zip(files, parts, strict=True):
        drawn = ((key, torch.empty(info.shape, dtype=info.dtype).normal_()) for key, info in part.items())
        if kind == "bin":
            torch.save(dict(drawn), file)
        else:
            with SafetensorsWriter(file, part) as writer:
                for _, tensor in drawn:
                    writer.write(tensor)
    weight_map = {key: file.name for file, part in zip(files, parts, strict=True) for key in part}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
    return files


def config_of_size(size: float) -> dict:
    """A configuration whose tensors take about `size` bytes, which grow with the square of the width."""
    released = sum(bytes_of(rule.shape) for rule in chat_layout(config_of_width(WIDTH)))
    width = WIDTH * math.sqrt(size / released)
    return config_of_width(max(round(width / WIDTH_STEP), 1) * WIDTH_STEP)


def config_of_width(width: int) -> dict:
    return {
        "model_type": MODEL_TYPE,
        "template": "internvl2_5",
        "ps_version": "v2",
        "downsample_ratio": 0.5,
        "force_image_size": 448,
        "vision_config": {
            "hidden_size": width // VISION_PART,
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
            "vocab_size": ROWS * width // WIDTH,
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


def tensors_of(config: dict) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Keys and shapes of a chat model and of a mask tokenizer in it."""
    for rule in chat_layout(config):
        yield rule.source, rule.shape
    with torch.device("meta"):
        masks = build_mask_tokenizer("tiny", pixel_channels=PIXEL_CHANNELS).state_dict()
    for key, value in masks.items():
        yield f"{CHAT_PREFIX}{key}", tuple(value.shape)


def bytes_of(shape: tuple[int, ...]) -> int:
    return math.prod(shape) * torch.bfloat16.itemsize


if __name__ == "__main__":
    main()
