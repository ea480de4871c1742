"""The files of all models of a command, checked before ms-swift loads anything.

Contract: `check_saved_arguments` runs before ms-swift reads args.json of a checkpoint, `check_model_files` before it
reads anything else. Both look at local folders only; what a hub sends is checked by the hub's client.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from himtok_plugin.checkpoints.file_contents import check_weights_file
from himtok_plugin.checkpoints.json_files import read_json_object
from himtok_plugin.checkpoints.model_folder import (
    ARGUMENTS_FILE,
    check_adapter_folder,
    check_model_folder,
    check_training_checkpoint,
    find_last_whole_checkpoint,
)

# Fields of ms-swift's argument classes and of ours: a folder or a hub id, a list of them, or texts NAME=DIR.
MODELS = ("model", "ref_model", "reward_model", "teacher_model", "value_model", "refiner_model", "mask_tokenizer")
ADAPTERS = ("adapters", "ref_adapters", "reward_adapters", "teacher_adapters", "value_adapters")


def check_saved_arguments(folder: str | None) -> None:
    """Check args.json of the checkpoint from which ms-swift takes defaults.

    Raises:
        ValueError: the file is cut, empty or something else.
    """
    if folder and (Path(folder) / ARGUMENTS_FILE).is_file():
        read_json_object(Path(folder) / ARGUMENTS_FILE)


def check_model_files(args: Any) -> None:
    """Check the files of models and adapters in local folders, and of the checkpoint that a training resumes from.

    Raises:
        ValueError: a file is cut, empty or something else, or files are missing; the message says which and what it is.
    """
    # First, because a full training also takes the model from there, and only this names the last whole checkpoint.
    if resumed := getattr(args, "resume_from_checkpoint", None):
        check_resumed_checkpoint(Path(resumed), only_model=bool(getattr(args, "resume_only_model", False)))
    for path in _list_paths(args, MODELS):
        if path.is_dir():
            check_model_folder(path)
        else:  # himtok.pth
            check_weights_file(path)
    for path in _list_paths(args, ADAPTERS):
        check_adapter_folder(path)


def check_resumed_checkpoint(folder: Path, only_model: bool = False) -> None:
    """Check that a training can go on from a checkpoint, and name the last one that it can go on from otherwise.

    Args:
        folder: the checkpoint.
        only_model: the run takes the weights alone.
    Raises:
        ValueError: the checkpoint's saving was interrupted, or a file is cut, empty or something else.
    """
    try:
        if only_model:
            check_adapter_folder(folder)
            check_model_folder(folder)
        else:
            check_training_checkpoint(folder)
    except ValueError as error:
        whole = find_last_whole_checkpoint(folder.parent)
        advice = "there is no whole checkpoint beside it" if whole is None else f"the last whole one is {whole}"
        raise ValueError(f"resume_from_checkpoint: {error}; {advice}") from error


def _list_paths(args: Any, names: tuple[str, ...]) -> Iterator[Path]:
    """The values of fields that are files or folders here; others are hub ids."""
    for name in names:
        value = getattr(args, name, None)
        for text in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(text, str) or not text:
                continue
            places = (text, text.partition("=")[2])  # --adapters NAME=DIR
            path = next((Path(place) for place in places if place and Path(place).exists()), None)
            if path is not None:
                yield path
