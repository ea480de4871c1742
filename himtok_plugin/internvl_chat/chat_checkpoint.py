"""Opens an InternVL chat checkpoint: its configuration, and its weights files one by one.

`open_chat_checkpoint` takes a folder or downloads a hub id, reads the headers of all weights files, and rejects what is
not an InternVL chat model or is truncated. `ChatCheckpoint.load` returns the tensors of one file. They are mapped from
the file, except those of a .bin file in the format from before PyTorch 1.6, which is read whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from himtok_plugin.checkpoints.json_files import read_json_object
from himtok_plugin.checkpoints.safetensors_files import (
    INDEX_FILE,
    check_shards_are_complete,
    list_indexed_files,
    read_safetensors_header,
    read_weight_map,
)
from himtok_plugin.mask_tokenizer.released_weights import (
    CHAT_PREFIX,
    RELEASED_FILE,
    download_from_hub,
    read_pickle,
)

from .chat_config import CONVERTED_MODEL_TYPE, MODEL_TYPE

# As transformers names them: an index if there are several files, else one file. The first kind found is read.
INDICES = (INDEX_FILE, "pytorch_model.bin.index.json")
SINGLE_FILES = ("*.safetensors", "pytorch_model*.bin")
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


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class ChatCheckpoint:
    """A checkpoint whose headers have been read.

    Attributes:
        folder: the folder of its files.
        config: its config.json.
        shards: weights file -> key -> shape and dtype, files and keys in order.
    """

    folder: Path
    config: dict[str, Any]
    shards: dict[Path, dict[str, TensorInfo]] = field(default_factory=dict)

    def tensors(self) -> dict[str, TensorInfo]:
        """Return the shape and dtype of every tensor, by key."""
        return {key: info for shard in self.shards.values() for key, info in shard.items()}

    def load(self, shard: Path, keys: Iterable[str]) -> dict[str, Tensor]:
        """Load tensors of one file, by key; they may share memory."""
        if shard.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(shard, "pt") as file:
                return {key: file.get_tensor(key) for key in keys}
        state = read_pickle(shard, mmap=True)
        return {key: state[key] for key in keys}

    def load_tensor(self, key: str) -> Tensor:
        """Load one tensor from the file that holds it."""
        shard = next(shard for shard, tensors in self.shards.items() if key in tensors)
        return self.load(shard, [key])[key]


def open_chat_checkpoint(name: str) -> ChatCheckpoint:
    """Find an InternVL chat model and read the headers of its files.

    Args:
        name: folder, or hub id, which is downloaded.
    Raises:
        ValueError: the folder is empty, the hub cannot be reached, this is not an InternVL chat model, a weights file
            is missing or truncated, or two files hold the same key.
    """
    folder = Path(name)
    if not folder.exists():
        folder = _download_chat_model(name)
    config = read_chat_config(folder)
    checkpoint = ChatCheckpoint(folder, config)
    seen: dict[str, Path] = {}
    for file in _list_weights_files(folder):
        tensors = _read_header(file)
        twice = sorted(seen.keys() & tensors.keys())
        if twice:
            raise ValueError(f"{file}: keys {twice} are also in {seen[twice[0]].name}, expected each key in one file")
        seen |= dict.fromkeys(tensors, file)
        checkpoint.shards[file] = tensors
    return checkpoint


def read_chat_config(folder: Path) -> dict[str, Any]:
    """Read config.json of an InternVL chat model.

    Raises:
        ValueError: the file is missing, or is not the configuration of an InternVL chat model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no config.json, expected the folder of an InternVL chat model")
    config = read_json_object(path)
    model_type = config.get("model_type")
    if model_type == CONVERTED_MODEL_TYPE:
        raise ValueError(f"{folder}: model_type: got {model_type!r}, which is already converted")
    missing = [name for name in ("vision_config", "llm_config") if not isinstance(config.get(name), Mapping)]
    if model_type != MODEL_TYPE:
        raise ValueError(
            f"{folder}: model_type: got {model_type!r}, expected {MODEL_TYPE!r}, that of an InternVL chat model"
        )
    if missing:
        raise ValueError(f"{path}: expected objects {' and '.join(missing)}, as InternVL chat models have")
    return config


def _list_weights_files(folder: Path) -> list[Path]:
    for index in INDICES:
        if (folder / index).is_file():
            return list_indexed_files(folder / index)
    for pattern in SINGLE_FILES:
        files = sorted(folder.glob(pattern))
        if files:
            check_shards_are_complete(files)
            return files
    raise ValueError(f"{folder}: no weights, expected *.safetensors or pytorch_model*.bin")


def _read_header(file: Path) -> dict[str, TensorInfo]:
    if file.suffix == ".safetensors":
        return _read_safetensors_header(file)
    state = read_pickle(file, mmap=True)
    others = sorted(str(key) for key, value in state.items() if not isinstance(value, Tensor))
    if others:
        raise ValueError(f"{file}: entries {others} are not tensors")
    _check_dtypes(file, {key: value.dtype for key, value in state.items()}, SAFETENSORS_DTYPES.values())
    return {key: TensorInfo(tuple(value.shape), value.dtype) for key, value in state.items()}


def _read_safetensors_header(file: Path) -> dict[str, TensorInfo]:
    found = read_safetensors_header(file)
    _check_dtypes(file, {key: header.dtype for key, header in found.items()}, SAFETENSORS_DTYPES)
    return {key: TensorInfo(header.shape, SAFETENSORS_DTYPES[header.dtype]) for key, header in found.items()}


def _check_dtypes(file: Path, dtypes: Mapping[str, object], supported: Collection[object]) -> None:
    unsupported = {key: str(dtype) for key, dtype in dtypes.items() if dtype not in supported}
    if unsupported:
        raise ValueError(f"{file}: dtypes {unsupported}, expected one of {sorted(SAFETENSORS_DTYPES)}")


def _download_chat_model(name: str) -> Path:
    """Download the small files first: the index lists which of the large ones are needed."""
    folder = download_from_hub(name, "InternVL chat model", SMALL_FILES)
    read_chat_config(folder)  # before gigabytes are fetched
    for index in INDICES:
        if (folder / index).is_file():
            weight_map = read_weight_map(folder / index)
            mask_tokenizer = [] if any(key.startswith(CHAT_PREFIX) for key in weight_map) else [RELEASED_FILE]
            return download_from_hub(name, "InternVL chat model", [*sorted(set(weight_map.values())), *mask_tokenizer])
    return download_from_hub(name, "InternVL chat model", [*SINGLE_FILES, RELEASED_FILE])
