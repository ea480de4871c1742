"""Prepares the output folder of a conversion.

`check_output_is_apart` rejects a folder that holds the source. `clear_output_folder` removes the files of an earlier
conversion and keeps all others. It removes config.json first: without it no library loads the folder, so an
interruption never leaves a loadable mixture of two conversions.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from himtok_plugin.checkpoints.safetensors_files import INDEX_FILE
from himtok_plugin.mask_tokenizer.released_weights import SIDECAR_FOLDER

from .tokenizer_files import ADDED_FILE, FAST_FILE, SETTINGS_FILE, SPECIAL_FILE

# Patterns, in the order of removal. The processor's files are those of all versions of transformers, which falls back
# to an old file beside a new one.
REPLACED_FILES = (
    "config.json",
    "*.safetensors",
    INDEX_FILE,
    "generation_config.json",
    *(FAST_FILE, SETTINGS_FILE, SPECIAL_FILE, ADDED_FILE),
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("chat_template.jinja", "chat_template.json"),
)


def check_output_is_apart(source: Path, out: Path) -> None:
    """Reject an output folder where the conversion would delete or overwrite files of its source.

    Args:
        source: folder of a checkpoint, or a weights file, which stands for its folder.
        out: folder to write.
    Raises:
        ValueError: `out` is the source's folder, the source's files are links into it, or its `mask_tokenizer/` holds
            the source.
    """
    folder = source if source.is_dir() else source.parent
    read = {folder.resolve(), *(path.resolve().parent for path in folder.iterdir() if path.is_file())}
    target, sidecar = out.resolve(), (out / SIDECAR_FOLDER).resolve()
    if any(place == target or place.is_relative_to(sidecar) for place in read):
        raise ValueError(f"{out}: this folder holds the files to convert, expected another folder to write to")


def clear_output_folder(out: Path) -> None:
    """Create the folder, or remove the files that an earlier conversion wrote into it."""
    out.mkdir(parents=True, exist_ok=True)
    for path in [path for pattern in REPLACED_FILES for path in sorted(out.glob(pattern))]:
        path.unlink()
    sidecar = out / SIDECAR_FOLDER
    if sidecar.is_symlink():
        sidecar.unlink()
    elif sidecar.is_dir():
        shutil.rmtree(sidecar)
