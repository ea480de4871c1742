"""The folder that a conversion writes into: apart from what it reads, and without what an earlier one left.

Contract: `check_apart` refuses to write over the source. `clear` removes the files that conversions write, config.json
first: without it the folder is no model, so that no interruption leaves a mixture of two conversions that would load.
Other files stay. Does not know what is written.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from himtok_plugin.mask_tokenizer.released_weights import SIDECAR_FOLDER

from .token_files import ADDED_FILE, FAST_FILE, SETTINGS_FILE, SPECIAL_FILE
from .weights import INDEX_FILE

# Patterns, in the order of removal. A processor's files are those of all versions of transformers: where a new file
# says nothing, an old one beside it would be read.
REPLACED_FILES = (
    "config.json",
    "*.safetensors",
    INDEX_FILE,
    "generation_config.json",
    *(FAST_FILE, SETTINGS_FILE, SPECIAL_FILE, ADDED_FILE),
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("chat_template.jinja", "chat_template.json"),
)


def check_apart(source: Path, out: Path) -> None:
    """Refuse an output folder in which files of the source would be deleted or written over while they are read.

    Args:
        source: folder of a checkpoint, or a weights file, whose folder then counts.
        out: folder to write.
    Raises:
        ValueError: it is the source's folder, files there are links into it, or its `mask_tokenizer/` holds the source.
    """
    folder = source if source.is_dir() else source.parent
    read = {folder.resolve(), *(path.resolve().parent for path in folder.iterdir() if path.is_file())}
    target, sidecar = out.resolve(), (out / SIDECAR_FOLDER).resolve()
    if any(place == target or place.is_relative_to(sidecar) for place in read):
        raise ValueError(f"{out}: what is to be converted lies there, expected another folder to write")


def clear(out: Path) -> None:
    """Make the folder, or remove what an earlier conversion wrote into it."""
    out.mkdir(parents=True, exist_ok=True)
    for path in [path for pattern in REPLACED_FILES for path in sorted(out.glob(pattern))]:
        path.unlink()
    sidecar = out / SIDECAR_FOLDER
    if sidecar.is_symlink():
        sidecar.unlink()
    elif sidecar.is_dir():
        shutil.rmtree(sidecar)
