"""The files of an InternVL chat checkpoint: configuration, and tensors read one at a time.

Contract: `open_chat_model` finds a folder or downloads a hub id, reads the headers of all weights files and refuses
what is no InternVL chat model or is cut short, before anything is written. `ChatCheckpoint.shards` says which tensors
lie in which file, `read` gives them one by one, so that little more than one tensor need be in memory. Only a .bin file
in the format from before PyTorch 1.6 is read whole, for its header already. Does not know what the tensors mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from himtok_plugin.mask_tokenizer.released_weights import (
    CHAT_PREFIX,
    RELEASED_FILE,
    can_be_mapped,
    download,
    read_pickle,
)

from .chat_config import MODEL_TYPE, NATIVE_MODEL_TYPE

# As transformers writes them: an index where there are several files, else one file. The first kind found counts.
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILES = ("*.safetensors", "pytorch_model*.bin")
MAPPED_AT_ONCE = 1 << 24  # bytes of a .bin file; opening one takes longer than opening a safetensors file
SMALL_FILES = ("*.json", "*.model", "*.txt")
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a tensor that has not been read."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class ChatCheckpoint:
    """A checkpoint whose headers have been read.

    Attributes:
        folder: where its files lie.
        config: its config.json.
        shards: weights file -> key -> what the tensor is like, files and keys in order.
    """

    folder: Path
    config: dict[str, Any]
    shards: dict[Path, dict[str, TensorInfo]] = field(default_factory=dict)

    def tensors(self) -> dict[str, TensorInfo]:
        """Key -> what the tensor is like, of all files."""
        return {key: info for shard in self.shards.values() for key, info in shard.items()}

    def read(self, shard: Path, keys: list[str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors of one file, one by one; each may be dropped before the next is read, and soon leaves memory then."""
        # Opened anew now and then: pages of an open file that were read once would stay in memory.
        if shard.suffix == ".safetensors":
            from safetensors import safe_open

            for key in keys:
                with safe_open(shard, "pt") as file:
                    yield key, file.get_tensor(key)
            return
        state, left = read_pickle(shard, mmap=True), MAPPED_AT_ONCE
        for key in keys:
            if left < 0 and can_be_mapped(shard):
                state, left = read_pickle(shard, mmap=True), MAPPED_AT_ONCE
            left -= state[key].nbytes
            yield key, state[key]

    def read_one(self, key: str) -> Tensor:
        """One tensor, wherever it lies."""
        shard = next(shard for shard, tensors in self.shards.items() if key in tensors)
        return next(self.read(shard, [key]))[1]


def open_chat_model(name: str) -> ChatCheckpoint:
    """Find an InternVL chat model and read the headers of its files.

    Args:
        name: folder, or hub id, which is then downloaded.
    Raises:
        ValueError: nothing there, the hub cannot be reached, no InternVL chat model, a weights file that is missing or
            cut short, or a key that stands in two files.
    """
    folder = Path(name)
    if not folder.exists():
        folder = _download(name)
    config = read_config(folder)
    checkpoint = ChatCheckpoint(folder, config)
    seen: dict[str, Path] = {}
    for file in _weights_files(folder):
        tensors = _read_header(file)
        twice = sorted(seen.keys() & tensors.keys())
        if twice:
            raise ValueError(f"{file}: {twice} stand in {seen[twice[0]].name} as well, expected each key once")
        seen |= dict.fromkeys(tensors, file)
        checkpoint.shards[file] = tensors
    return checkpoint


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of an InternVL chat model.

    Raises:
        ValueError: it is none.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no config.json, expected the folder of an InternVL chat model")
    config = read_json_object(path)
    model_type = config.get("model_type")
    if model_type == NATIVE_MODEL_TYPE:
        raise ValueError(f"{folder}: model_type: got {model_type!r}, which needs no conversion any more")
    parts = [name for name in ("vision_config", "llm_config") if not isinstance(config.get(name), Mapping)]
    if model_type != MODEL_TYPE or parts:
        lacking = f" and {' and '.join(parts)} in it" if parts else ""
        raise ValueError(
            f"{folder}: model_type: got {model_type!r}, expected {MODEL_TYPE!r}{lacking}: no InternVL chat model"
        )
    return config


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ValueError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a JSON object")
    return content


def _read_index(path: Path) -> dict[str, str]:
    """Which file of a folder holds a tensor: key -> name."""
    weight_map = read_json_object(path).get("weight_map")
    if not (isinstance(weight_map, dict) and weight_map and all(isinstance(name, str) for name in weight_map.values())):
        raise ValueError(f"{path}: weight_map: expected an object that names a file for each key")
    return weight_map


def _weights_files(folder: Path) -> list[Path]:
    for index in INDICES:
        if (folder / index).is_file():
            names = sorted(set(_read_index(folder / index).values()))
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise ValueError(f"{folder}: {index} names {missing}, which are not there")
            return [folder / name for name in names]
    for pattern in SINGLE_FILES:
        files = sorted(folder.glob(pattern))
        if files:
            return files
    raise ValueError(f"{folder}: no weights, expected *.safetensors or pytorch_model*.bin")


def _read_header(file: Path) -> dict[str, TensorInfo]:
    if file.suffix == ".safetensors":
        found = _read_safetensors_header(file)
    else:
        state = read_pickle(file, mmap=True)
        strange = sorted(str(key) for key, value in state.items() if not isinstance(value, Tensor))
        if strange:
            raise ValueError(f"{file}: entries that are no tensors: {strange}")
        found = {key: (tuple(value.shape), DTYPE_NAMES.get(value.dtype, value.dtype)) for key, value in state.items()}
    strange = {key: str(dtype) for key, (_, dtype) in found.items() if dtype not in SAFETENSORS_DTYPES}
    if strange:
        raise ValueError(f"{file}: dtypes {strange}, expected some of {sorted(SAFETENSORS_DTYPES)}")
    return {key: TensorInfo(shape, SAFETENSORS_DTYPES[dtype]) for key, (shape, dtype) in found.items()}


def _read_safetensors_header(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}
            return {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{file}: cut short, or no safetensors file ({error})") from error


def _download(name: str) -> Path:
    """The small files first: they say which of the large ones are wanted."""
    folder = download(name, "InternVL chat model", SMALL_FILES)
    read_config(folder)  # before gigabytes are fetched
    for index in INDICES:
        if (folder / index).is_file():
            weight_map = _read_index(folder / index)
            released = [] if any(key.startswith(CHAT_PREFIX) for key in weight_map) else [RELEASED_FILE]
            return download(name, "InternVL chat model", [*sorted(set(weight_map.values())), *released])
    return download(name, "InternVL chat model", [*SINGLE_FILES, RELEASED_FILE])
