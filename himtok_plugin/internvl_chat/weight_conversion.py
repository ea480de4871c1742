"""Converts the weights of an InternVL chat model, one safetensors file for each of its files.

Only one file is in memory at a time, so that a model takes about as much memory as its largest file. Keys and shapes
are compared with the rules of key_mapping.py before anything is written.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from himtok_plugin.checkpoints.safetensors_files import INDEX_FILE, WEIGHTS_FILE, save_file
from himtok_plugin.mask_tokenizer.released_weights import (
    CHAT_PREFIX,
    IGNORED_PREFIXES,
    check_keys,
    is_mask_tokenizer_key,
)

from .chat_checkpoint import ChatCheckpoint, TensorInfo
from .key_mapping import TensorRule

ProgressCallback = Callable[[int, int], None]  # called with (tensors written, tensors in all)


def get_mask_tokenizer_shapes(checkpoint: ChatCheckpoint) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the mask tokenizer in the checkpoint, by its own keys; empty if it does not have one."""
    found = {key.removeprefix(CHAT_PREFIX): info.shape for key, info in _mask_tokenizer_tensors(checkpoint).items()}
    return {key: shape for key, shape in found.items() if is_mask_tokenizer_key(key)}


def check_keys_and_shapes(checkpoint: ChatCheckpoint, rules: Sequence[TensorRule]) -> None:
    """Compare a checkpoint with the rules of its configuration, except for the mask tokenizer and `sam.` keys.

    Raises:
        ValueError: keys are missing or unknown, or shapes are wrong; the message names all of them.
    """
    skipped = _mask_tokenizer_tensors(checkpoint)
    found = {
        key: info.shape
        for key, info in checkpoint.tensors().items()
        if key not in skipped and not key.startswith(IGNORED_PREFIXES)
    }
    optional = [rule.source for rule in rules if rule.equals]
    check_keys(found, {rule.source: rule.shape for rule in rules}, checkpoint.folder, optional)


def check_tied_tensors(checkpoint: ChatCheckpoint, rules: Sequence[TensorRule]) -> None:
    """Compare stored tensors that repeat another one, such as a tied output head, with that one.

    Raises:
        ValueError: two of them differ.
    """
    stored = checkpoint.tensors()
    for rule in rules:
        if rule.equals is None or rule.source not in stored:
            continue
        if not torch.equal(checkpoint.load_tensor(rule.source), checkpoint.load_tensor(rule.equals)):
            raise ValueError(
                f"{rule.source}: differs from {rule.equals}, expected equal tensors with tie_word_embeddings"
            )


def convert_weights(
    checkpoint: ChatCheckpoint, rules: Sequence[TensorRule], out: Path, progress: ProgressCallback
) -> None:
    """Write the language and vision model, one file for each input file that holds part of it, and their index.

    Args:
        checkpoint: accepted by `check_keys_and_shapes` and `check_tied_tensors`.
        rules: those of its configuration; tied tensors, which have no target, are not written.
        out: folder to write.
        progress: called with (tensors written, tensors in all) after each file.
    """
    rules_by_source = {rule.source: rule for rule in rules if rule.targets}
    plan = {shard: [key for key in tensors if key in rules_by_source] for shard, tensors in checkpoint.shards.items()}
    plan = {shard: keys for shard, keys in plan.items() if keys}
    total, done = sum(map(len, plan.values())), 0
    weight_map: dict[str, str] = {}
    size = 0
    for number, (shard, keys) in enumerate(plan.items(), 1):
        name = WEIGHTS_FILE if len(plan) == 1 else f"model-{number:05d}-of-{len(plan):05d}.safetensors"
        converted = _convert_shard(checkpoint.load(shard, keys), rules_by_source)
        _save(converted, out / name)
        weight_map |= dict.fromkeys(converted, name)
        size += sum(tensor.nbytes for tensor in converted.values())
        del converted  # before the next one is loaded
        done += len(keys)
        progress(done, total)
    if len(plan) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (out / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def convert_mask_tokenizer(checkpoint: ChatCheckpoint, out: Path) -> None:
    """Write the weights of the mask tokenizer in float32, the dtype in which mask tokenizers are stored."""
    wanted = {
        key for key in _mask_tokenizer_tensors(checkpoint) if is_mask_tokenizer_key(key.removeprefix(CHAT_PREFIX))
    }
    converted: dict[str, Tensor] = {}
    for shard, tensors in checkpoint.shards.items():
        for key, tensor in checkpoint.load(shard, [key for key in tensors if key in wanted]).items():
            converted[key.removeprefix(CHAT_PREFIX)] = tensor.float()
    _save(converted, out / WEIGHTS_FILE)


def _convert_shard(tensors: Mapping[str, Tensor], rules: Mapping[str, TensorRule]) -> dict[str, Tensor]:
    converted: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        converted |= zip(rules[key].targets, rules[key].split(tensor), strict=True)
    return converted


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    # .bin files may hold views; `save_file` rejects those that are not contiguous or share their data.
    starts = Counter(tensor.data_ptr() for tensor in tensors.values())
    separate = {
        key: tensor.clone() if starts[tensor.data_ptr()] > 1 else tensor.contiguous() for key, tensor in tensors.items()
    }
    save_file(separate, path)


def _mask_tokenizer_tensors(checkpoint: ChatCheckpoint) -> dict[str, TensorInfo]:
    return {key: info for key, info in checkpoint.tensors().items() if key.startswith(CHAT_PREFIX)}
