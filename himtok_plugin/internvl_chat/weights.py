"""Weights of an InternVL chat model, streamed from its files into safetensors.

Contract: every file is turned into one file, tensor by tensor: little more than one tensor and its pieces is in
memory, whatever the size of a file (source.py says which old ones are read whole). Keys and shapes are compared with
layout.py before anything is written. Does not know configurations.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from himtok_plugin.mask_tokenizer.released_weights import (
    CHAT_PREFIX,
    IGNORED_PREFIXES,
    check_keys,
    is_part,
)

from .layout import Rule
from .source import DTYPE_NAMES, ChatCheckpoint, TensorInfo

HEADER_ALIGNMENT = 8  # of safetensors: what follows the header begins at a multiple of it
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"

Progress = Callable[[int, int], None]  # (tensors done, tensors in all)


def mask_tokenizer_shapes(checkpoint: ChatCheckpoint) -> dict[str, tuple[int, ...]]:
    """Shapes of the mask tokenizer in the checkpoint, by its own keys; empty where there is none."""
    found = {key.removeprefix(CHAT_PREFIX): info.shape for key, info in _of_mask_tokenizer(checkpoint).items()}
    return {key: shape for key, shape in found.items() if is_part(key)}


def check_layout(checkpoint: ChatCheckpoint, rules: Sequence[Rule]) -> None:
    """Refuse a checkpoint whose keys or shapes are not those of the rules; the mask tokenizer and `sam.` aside.

    Raises:
        ValueError: keys are missing or left over, or shapes are wrong; all are named.
    """
    skipped = _of_mask_tokenizer(checkpoint)
    found = {
        key: info.shape
        for key, info in checkpoint.tensors().items()
        if key not in skipped and not key.startswith(IGNORED_PREFIXES)
    }
    optional = [rule.source for rule in rules if rule.equals]
    check_keys(found, {rule.source: rule.shape for rule in rules}, checkpoint.folder, optional)


def check_tied(checkpoint: ChatCheckpoint, rules: Sequence[Rule]) -> None:
    """Read tensors that only repeat others, as a tied output head does, where they are stored, and compare the two.

    Raises:
        ValueError: they differ.
    """
    stored = checkpoint.tensors()
    for rule in rules:
        if rule.equals is None or rule.source not in stored:
            continue
        if not torch.equal(checkpoint.read_one(rule.source), checkpoint.read_one(rule.equals)):
            raise ValueError(f"{rule.source}: differs from {rule.equals}, expected the same with tie_word_embeddings")


def convert_weights(checkpoint: ChatCheckpoint, rules: Sequence[Rule], out: Path, progress: Progress) -> None:
    """Write the language and vision model: one file for each that holds some of it, and their index.

    Args:
        checkpoint: of which `check_layout` and `check_tied` approve; tensors that only repeat others are left out.
        rules: of its configuration.
        out: folder to write.
        progress: told of (tensors done, tensors in all).
    """
    by_source = {rule.source: rule for rule in rules if rule.targets}
    plan = {shard: [key for key in tensors if key in by_source] for shard, tensors in checkpoint.shards.items()}
    plan = {shard: keys for shard, keys in plan.items() if keys}
    total, done = sum(map(len, plan.values())), 0
    weight_map, size = {}, 0
    for number, (shard, keys) in enumerate(plan.items(), 1):
        name = WEIGHTS_FILE if len(plan) == 1 else f"model-{number:05d}-of-{len(plan):05d}.safetensors"
        pieces = {}
        for key in keys:
            info = checkpoint.shards[shard][key]
            like = by_source[key].split(torch.empty(info.shape, dtype=info.dtype, device="meta"))
            for target, piece in zip(by_source[key].targets, like, strict=True):
                pieces[target] = TensorInfo(tuple(piece.shape), piece.dtype)
        with SafetensorsWriter(out / name, pieces) as writer:
            for key, tensor in checkpoint.read(shard, keys):
                for piece in by_source[key].split(tensor):
                    writer.write(piece)
                del tensor
                done += 1
                progress(done, total)
        weight_map |= dict.fromkeys(pieces, name)
        size += writer.size
    if len(plan) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (out / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def convert_mask_tokenizer(checkpoint: ChatCheckpoint, out: Path) -> None:
    """Write the mask tokenizer's weights, in float32, as it is kept everywhere."""
    wanted = [key for key in _of_mask_tokenizer(checkpoint) if is_part(key.removeprefix(CHAT_PREFIX))]
    shapes = checkpoint.tensors()
    infos = {key.removeprefix(CHAT_PREFIX): TensorInfo(shapes[key].shape, torch.float32) for key in wanted}
    with SafetensorsWriter(out / WEIGHTS_FILE, infos) as writer:
        for shard, tensors in checkpoint.shards.items():
            for _, tensor in checkpoint.read(shard, [key for key in wanted if key in tensors]):
                writer.write(tensor.float())


class SafetensorsWriter:
    """Writes a safetensors file tensor by tensor, which the library itself takes all at once.

    The format: 8 bytes with the header's length, the header as JSON (dtype, shape and place of every tensor), then the
    tensors' bytes.

    Args:
        path: of the file.
        tensors: what is going to be written, in this order.
    """

    def __init__(self, path: Path, tensors: Mapping[str, TensorInfo]):
        header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
        self.size = 0
        for name, info in tensors.items():
            begin, self.size = self.size, self.size + info.dtype.itemsize * torch.Size(info.shape).numel()
            header[name] = {
                "dtype": DTYPE_NAMES[info.dtype],
                "shape": list(info.shape),
                "data_offsets": [begin, self.size],
            }
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % HEADER_ALIGNMENT)
        self._start = 8 + len(encoded)
        self._file = path.open("wb")
        self._file.write(len(encoded).to_bytes(8, "little") + encoded)

    def write(self, tensor: Tensor) -> None:
        """Append the next tensor."""
        self._file.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind, *_) -> None:
        written = self._file.tell() - self._start
        self._file.close()
        if kind is None and written != self.size:
            raise RuntimeError(f"{self._file.name}: {written} bytes of tensors written, {self.size} announced")


def _of_mask_tokenizer(checkpoint: ChatCheckpoint) -> dict[str, TensorInfo]:
    return {key: info for key, info in checkpoint.tensors().items() if key.startswith(CHAT_PREFIX)}
