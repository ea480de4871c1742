"""Where a number comes from: checkpoint, settings of inference, versions.

Purpose: a report says by itself what would have to be the same for its numbers to come out again.
Contract: `RunCard` is what inference leaves beside its result file (`OUT.jsonl.run.json`) and reports quote.
Does not know ms-swift and how inference is run.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from himtok_plugin.resources import SIDECAR_FOLDER

CARD_ENDING = ".run.json"
PACKAGES = ("himtok_plugin", "ms_swift", "torch", "transformers", "evalscope", "numpy", "pycocotools")
HASHED = (
    "*.safetensors",
    "pytorch_model*.bin",
    "adapter_model.bin",
    "himtok.pth",
    "config.json",
    "adapter_config.json",
)
_CHUNK = 1 << 22


@dataclass
class RunCard:
    """How a result came about.

    Attributes:
        checkpoint: folders or names of model and adapters, in the order in which they are applied.
        checkpoint_hash: `checkpoint_hash` of those that are folders here; None where there is none.
        num_mask_tokens: tokens per generated mask, at most.
        mask_decoding: `soft` or `hard`; soft decoding falls back to hard where no probabilities are known.
        threshold: probability from which a pixel is foreground.
        resize: see `protocols.RESIZES`.
        refiner, min_score, seed, temperature: of the run.
        versions: of the packages that matter.
        further: whatever else the run knows.
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
        """The card beside a result file, None if there is none.

        Raises:
            ValueError: a file of that name that is no card.
        """
        path = card_path(result)
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: is no run card ({error}): expected one that inference wrote") from error


def card_path(result: str | Path) -> Path:
    return Path(f"{result}{CARD_ENDING}")


def package_versions() -> dict[str, str]:
    """Versions of the packages that numbers may depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def checkpoint_hash(folders: list[str]) -> str | None:
    """blake2b of all weights and configurations in folders, `mask_tokenizer/` included; None where there is none.

    The same files give the same hash wherever they lie; what else is in a folder (optimizer, logs) does not matter.

    Args:
        folders: model and adapters, or single weights files; names that are nothing here are passed over.
    """
    digest = blake2b(digest_size=16)
    found = False
    for folder in map(Path, folders):
        below = (folder, folder / SIDECAR_FOLDER)
        files = [folder] if folder.is_file() else [p for f in below for pattern in HASHED for p in f.glob(pattern)]
        for path in sorted(set(files)):
            found = True
            name = path.name if path == folder else path.relative_to(folder)
            digest.update(f"{name} {path.stat().st_size}\n".encode())
            with open(path, "rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
    return digest.hexdigest() if found else None
