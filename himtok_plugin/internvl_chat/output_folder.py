"""The output folder of a conversion: never its source, and never that of another model."""

from __future__ import annotations

from pathlib import Path

from himtok_plugin.files.output_folder import OutputFolder
from himtok_plugin.resources import SIDECAR_FOLDER


def get_output_folder(out: Path) -> OutputFolder:
    """Return the folder of a conversion, whose mask tokenizer is in a folder of its own."""
    return OutputFolder(out, "himtok convert", parts=(SIDECAR_FOLDER,))


def check_output_is_apart(source: Path, out: Path) -> None:
    """Reject an output folder where the conversion would replace files of its source.

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
