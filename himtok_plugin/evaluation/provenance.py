"""What is needed to reproduce a score: checkpoint, inference settings, package versions.

Contract: inference saves a `RunCard` beside its result file (`OUT.jsonl.run.json`); reports include it.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from himtok_plugin.files.text import read_text
from himtok_plugin.resources import SIDECAR_FOLDER

from .hash_cache import hash_files

CARD_SUFFIX = ".run.json"
RECORDED_PACKAGES = ("himtok_plugin", "ms_swift", "torch", "transformers", "evalscope", "numpy", "pycocotools")
HASHED_FILES = (
    "*.safetensors",
    "pytorch_model*.bin",
    "adapter_model.bin",
    "himtok.pth",
    "config.json",
    "adapter_config.json",
)
_READ_BYTES = 1 << 22  # of a file at once


@dataclass
class RunCard:
    """The settings of an inference run.

    Attributes:
        checkpoint: folders or hub ids of the model and its adapters, in the order of their application.
        checkpoint_hash: see `checkpoint_hash`; None if none of them is a local folder.
        num_mask_tokens: largest number of tokens per generated mask.
        mask_decoding: `soft` or `hard`; soft decoding falls back to hard if no probabilities were recorded.
        threshold: probability from which a pixel is foreground.
        resize: key of `protocols.RESIZES`.
        refiner, min_score, seed, temperature: of the run.
        versions: of the packages that scores may depend on.
        further: further settings, shown in reports as they are.
    """

    checkpoint: list[str] = field(default_factory=list)
    checkpoint_hash: str | None = None
    num_mask_tokens: int | None = None
    mask_decoding: str | None = None
    threshold: float | None = None
    resize: str = "bilinear"
    refiner: str | None = None
    min_score: float | None = None
    seed: int | None = None
    temperature: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    further: dict[str, Any] = field(default_factory=dict)

    def save(self, result: str | Path) -> Path:
        """Write the card beside a result file and return its path."""
        path = card_path(result)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, result: str | Path) -> RunCard | None:
        """Load the card beside a result file; None if there is none.

        Raises:
            ValueError: the file is not a run card.
        """
        path = card_path(result)
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(read_text(path)))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path}: is not a run card ({error}): expected a file written by `swift infer`"
            ) from error


def card_path(result: str | Path) -> Path:
    """Path of the run card of a result file."""
    return Path(f"{result}{CARD_SUFFIX}")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that scores may depend on."""
    found = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def checkpoint_hash(folders: list[str]) -> str | None:
    """blake2b of all weights and configurations of a checkpoint, including `mask_tokenizer/`; None if there are none.

    The hash depends on file names and contents, not on where the folders are. Other files (optimizer, logs) are left
    out. Unchanged files are read once only, see hash_cache.py.

    Args:
        folders: model and adapters, or single weights files; names that do not exist locally (hub ids) are left out.
    """
    named: list[tuple[str, Path]] = []
    for folder in map(Path, folders):
        below = (folder, folder / SIDECAR_FOLDER)
        files = (
            [folder] if folder.is_file() else [p for f in below for pattern in HASHED_FILES for p in f.glob(pattern)]
        )
        named += [(path.name if path == folder else str(path.relative_to(folder)), path) for path in sorted(set(files))]
    return hash_files(named, lambda: _hash_content(named)) if named else None


def _hash_content(named: list[tuple[str, Path]]) -> str:
    """blake2b of names, sizes and contents of files, in this order."""
    digest = blake2b(digest_size=16)
    for name, path in named:
        digest.update(f"{name} {path.stat().st_size}\n".encode())
        with open(path, "rb") as file:
            while chunk := file.read(_READ_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
