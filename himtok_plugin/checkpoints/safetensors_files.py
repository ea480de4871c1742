"""Safetensors files: headers, the files of a sharded model, and writing.

`WeightsFiles` describes the weights of a model that transformers would load from a folder, from the headers alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .file_contents import check_weights_file
from .json_files import read_json_object

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"


@dataclass(frozen=True)
class TensorHeader:
    """What the header of a safetensors file says about a tensor.

    Attributes:
        shape: its shape.
        dtype: its dtype as safetensors names it, such as F32 or BF16.
    """

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class WeightsFiles:
    """The weights of a model in a folder.

    Attributes:
        folder: the folder.
        files: safetensors file -> key -> header, files in order. One file, or those that the index lists.
        is_sharded: whether there is an index.
    """

    folder: Path
    files: dict[Path, dict[str, TensorHeader]]
    is_sharded: bool

    @classmethod
    def open(cls, folder: Path) -> WeightsFiles:
        """Read the headers of a model's weights.

        Raises:
            ValueError: there are no safetensors files, one is missing or truncated, or the index is not readable.
        """
        if (folder / WEIGHTS_FILE).is_file():  # transformers prefers it to an index
            return cls(folder, {folder / WEIGHTS_FILE: read_safetensors_header(folder / WEIGHTS_FILE)}, False)
        if not (folder / INDEX_FILE).is_file():
            raise ValueError(f"{folder}: no {WEIGHTS_FILE} or {INDEX_FILE}, expected a model with safetensors weights")
        files = list_indexed_files(folder / INDEX_FILE)
        return cls(folder, {file: read_safetensors_header(file) for file in files}, True)

    def tensors(self) -> dict[str, TensorHeader]:
        """Return the header of every tensor, by key."""
        return {key: header for file in self.files.values() for key, header in file.items()}

    def load_tensor(self, key: str) -> Tensor:
        """Load one tensor from the file that holds it."""
        from safetensors import safe_open

        file = next(file for file, tensors in self.files.items() if key in tensors)
        with safe_open(file, "pt") as opened:
            return opened.get_tensor(key)


def read_weight_map(index: Path) -> dict[str, str]:
    """Read the index of a sharded model: key -> file name.

    Raises:
        ValueError: it is not JSON, or does not name a file for each key.
    """
    weight_map = read_json_object(index).get("weight_map")
    if not (isinstance(weight_map, dict) and weight_map and all(isinstance(name, str) for name in weight_map.values())):
        raise ValueError(f"{index}: weight_map: expected an object that names a file for each key")
    return weight_map


def list_indexed_files(index: Path) -> list[Path]:
    """Return the files that the index of a sharded model lists, in order.

    Raises:
        ValueError: the index is not readable, or files are missing.
    """
    names = sorted(set(read_weight_map(index).values()))
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise ValueError(
            f"{index.parent}: {index.name} lists {missing}, which are missing, expected all {len(names)} files: "
            "copy or download the model again"
        )
    return [index.parent / name for name in names]


def check_shards_are_complete(files: Iterable[Path]) -> None:
    """Check that numbered files, such as model-00001-of-00003.safetensors, are there up to the number in their names.

    Raises:
        ValueError: a number is missing.
    """
    found: dict[tuple[Path, str, int, str], set[int]] = {}
    for file in files:
        if numbered := re.fullmatch(r"(.+)-(\d+)-of-(\d+)(\.\w+)", file.name):
            key = file.parent, numbered[1], int(numbered[3]), numbered[4]
            found.setdefault(key, set()).add(int(numbered[2]))
    for (folder, stem, count, suffix), numbers in found.items():
        missing = [f"{stem}-{n:05d}-of-{count:05d}{suffix}" for n in range(1, count + 1) if n not in numbers]
        if missing:
            shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise ValueError(
                f"{folder}: got no {shown}, expected all {count} files of the model: copy or download them"
            )


def read_safetensors_header(file: Path) -> dict[str, TensorHeader]:
    """Read the shape and dtype of every tensor, by key.

    Raises:
        ValueError: the file is missing, cut, or not a safetensors file; the message says what it is.
    """
    from safetensors import SafetensorError, safe_open

    check_weights_file(file)
    try:
        with safe_open(file, "pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}
            return {key: TensorHeader(tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{file}: got a file that cannot be read ({error}), expected a safetensors file") from error


def save_file(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file as safetensors' own `save_file` does, with the permissions of any other new file.

    Args:
        tensors: contiguous, without common storage.
        path: the file.
        metadata: of its header; None writes what transformers writes.
    """
    from safetensors.torch import save_file as save_private_file

    path.touch()
    mode = path.stat().st_mode
    save_private_file(dict(tensors), path, metadata=dict(metadata or {"format": "pt"}))
    path.chmod(mode)  # safetensors makes it readable for its owner only
