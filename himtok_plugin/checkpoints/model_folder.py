"""Checks the files that a model, an adapter or a resumed training is loaded from, before anything is loaded.

Libraries name neither the file nor what it is ("Error while deserializing header"), and some load what is left.
`check_model_folder` looks at the files that transformers would load, `check_adapter_folder` at those of PEFT, and
`check_training_checkpoint` at all files of a checkpoint. Weights are not read, only their tables.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from himtok_plugin.resources import SIDECAR_FOLDER

from .adapter_files import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from .file_contents import (
    WEIGHTS_SUFFIXES,
    check_json_file,
    check_text_file,
    check_weights_file,
    read_json,
)
from .json_files import read_json_object
from .safetensors_files import INDEX_FILE, WEIGHTS_FILE, check_shards_are_complete, list_indexed_files

ARGUMENTS_FILE = "args.json"  # ms-swift's
STATE_FILE = "trainer_state.json"  # transformers' trainer writes it last, so an interrupted checkpoint has none
OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*")  # of torch, FSDP and DeepSpeed
JSON_FILES = (
    *("config.json", "generation_config.json", ARGUMENTS_FILE, "calibration.json", "known_words.json"),
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "chat_template.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
)
TEXT_FILES = ("merges.txt", "vocab.txt", "tokenizer.model", "chat_template.jinja")
# One file or an index of several, in the order in which transformers looks for them.
MODEL_WEIGHTS = (WEIGHTS_FILE, "pytorch_model.bin")
ADAPTER_WEIGHTS = (ADAPTER_WEIGHTS_FILE, "adapter_model.bin")
PARSED_JSON = 2**20  # larger files, such as tokenizer.json, are not parsed: only their beginning and end are checked


def check_model_folder(folder: Path) -> None:
    """Check the configuration, the text tokenizer and the weights of a model, and its mask tokenizer if it has one.

    A folder without weights passes: whether it needs some is for the library that loads it.

    Raises:
        ValueError: a file is cut, empty or something else, or files of a sharded model are missing.
    """
    for name in JSON_FILES:
        if _is_there(folder / name):
            _check_json(folder / name)
    for name in TEXT_FILES:
        if (folder / name).is_file():
            check_text_file(folder / name)
    for file in _list_weights(folder):
        check_weights_file(file)
    if (folder / SIDECAR_FOLDER).is_dir():
        check_model_folder(folder / SIDECAR_FOLDER)


def check_adapter_folder(folder: Path) -> None:
    """Check the files of an adapter, and its mask tokenizer if it has one. A folder of something else passes.

    Raises:
        ValueError: a file is cut, empty or something else, or there are no weights.
    """
    if not _is_there(folder / ADAPTER_CONFIG_FILE):
        return
    read_json_object(folder / ADAPTER_CONFIG_FILE)
    check_model_folder(folder)
    weights = next((folder / name for name in ADAPTER_WEIGHTS if _is_there(folder / name)), None)
    if weights is None:
        raise ValueError(f"{folder}: got an adapter without weights, expected {ADAPTER_WEIGHTS_FILE}")
    check_weights_file(weights)


def check_training_checkpoint(folder: Path) -> None:
    """Check that a training can be resumed from a checkpoint: that its saving was not interrupted, by a full disk say.

    Files of others, such as notes in JSON and hidden folders, do not matter.

    Raises:
        ValueError: a file is missing, cut, empty or something else.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: got no such folder, expected a checkpoint of a training")
    if not (folder / STATE_FILE).is_file():
        raise ValueError(
            f"{folder}: got no {STATE_FILE}, which is written last, expected a checkpoint whose saving was not "
            "interrupted"
        )
    for file in _list_visible_files(folder):
        if file.name in (*JSON_FILES, STATE_FILE, ADAPTER_CONFIG_FILE):
            _check_json(file)
        elif file.suffix in WEIGHTS_SUFFIXES:
            check_weights_file(file)
    for index in (*folder.glob("*.index.json"), *folder.glob(f"{SIDECAR_FOLDER}/*.index.json")):
        list_indexed_files(index)
    saved = read_json_object(folder / ARGUMENTS_FILE) if (folder / ARGUMENTS_FILE).is_file() else {}
    has_optimizer = any(next(folder.glob(pattern), None) for pattern in OPTIMIZER_FILES)
    if saved.get("save_only_model") is False and not has_optimizer:
        # transformers' trainer would begin with a new one, without a word.
        raise ValueError(f"{folder}: got no {OPTIMIZER_FILES[0]}, expected the optimizer's state, or a new run")


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a run's folder, in the order of their steps."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*") if path.is_dir()}
    return sorted((path for path, step in steps.items() if step.isdecimal()), key=lambda path: int(steps[path]))


def find_last_whole_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint with the most steps in a run's folder that passes `check_training_checkpoint`, or None."""
    return next((path for path in reversed(list_checkpoints(folder)) if _is_whole(path)), None)


def delete_broken_checkpoints(checkpoints: Iterable[Path], count: int) -> None:
    """Delete at most `count` of these checkpoints, in order, that `check_training_checkpoint` refuses."""
    for path in [path for path in checkpoints if not _is_whole(path)][:count]:
        shutil.rmtree(path)


def _is_whole(checkpoint: Path) -> bool:
    try:
        check_training_checkpoint(checkpoint)
    except (ValueError, OSError):
        return False
    return True


def _list_weights(folder: Path) -> list[Path]:
    """Return the weights files that transformers would load; none if it would load none."""
    for single in MODEL_WEIGHTS:
        if _is_there(folder / single):
            return [folder / single]
        index = folder / f"{single}.index.json"
        if _is_there(index):
            return list_indexed_files(index)
    shards = sorted(folder.glob(f"{Path(WEIGHTS_FILE).stem}-*-of-*.safetensors"))
    if shards:
        check_shards_are_complete(shards)
        raise ValueError(
            f"{folder}: got {shards[0].name} and {len(shards) - 1} more without {INDEX_FILE}, which says what is in "
            "which, expected the whole model: copy or download it"
        )
    return []


def _check_json(path: Path) -> None:
    check_json_file(path)
    if path.stat().st_size <= PARSED_JSON:
        read_json(path)


def _is_there(path: Path) -> bool:
    """Whether a file exists, or is a link to nothing, as in a cache whose files were deleted."""
    return path.is_file() or path.is_symlink()


def _list_visible_files(folder: Path) -> Iterator[Path]:
    """All files in a folder and below, without hidden ones and without links to folders, which can be loops."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or (path.is_dir() and path.is_symlink()):
            continue
        if path.is_dir():
            yield from _list_visible_files(path)
        else:
            yield path
