"""What a checkpoint has beside the LMM: the mask tokenizer in `mask_tokenizer/`, and `known_words.json`."""

from __future__ import annotations

import os
from functools import reduce
from operator import or_
from pathlib import Path

from swift.utils import get_logger
from torch import Tensor, nn

from himtok_plugin.mask_tokenizer import MaskTokenizer
from himtok_plugin.mask_tokenizer.released_weights import RELEASED_FILE, find_mask_tokenizer
from himtok_plugin.resources import SIDECAR_FOLDER
from himtok_plugin.words.known_words import KNOWN_WORDS_FILE, KnownWords

from .adapters import get_adapter_size
from .attached_mask_tokenizer import MASK_TOKENIZER_ATTRIBUTE, find_attached_mask_tokenizer
from .detokenizer import Detokenizer, save_complete_mask_tokenizer
from .sharding import load_unsharded

logger = get_logger()


def resolve_mask_tokenizer(requested: str | None, model_dir: str, adapters: list[str]) -> Path:
    """Find the mask tokenizer of a run.

    Args:
        requested: folder or hub id, takes precedence.
        model_dir: the model's checkpoint, searched last.
        adapters: the adapters' checkpoints, searched before it.
    Returns:
        Folder or weights file.
    Raises:
        ValueError: there is none.
    """
    if requested:
        return find_mask_tokenizer(requested)
    for folder in (*adapters, model_dir):
        if (Path(folder) / SIDECAR_FOLDER).is_dir() or (Path(folder) / RELEASED_FILE).is_file():
            return find_mask_tokenizer(folder)
    raise ValueError(
        f"mask_tokenizer: got none, and {model_dir} has no folder {SIDECAR_FOLDER}/, expected --mask_tokenizer DIR"
    )


def load_mask_tokenizer(source: Path) -> MaskTokenizer:
    """Load a mask tokenizer from a folder or a weights file."""
    if source.is_file():
        return MaskTokenizer.from_released(source)
    # With ZeRO-3, DeepSpeed shards the complete weights later, as part of the LMM.
    with load_unsharded():
        return MaskTokenizer.from_pretrained(source)


def load_known_words(model_dir: str, adapters: list[str]) -> KnownWords | None:
    """Load the words of a model's training questions.

    An adapter's list has the words of its base model as well.

    Args:
        model_dir: the model's checkpoint.
        adapters: the adapters' checkpoints.
    Returns:
        None if the training of the model or of an adapter is not known.
    Raises:
        ValueError: a list is damaged.
    """
    lists = [KnownWords.load(folder) for folder in adapters or [model_dir]]
    known = [words for words in lists if words is not None]
    return reduce(or_, known) if len(known) == len(lists) else None


def save_known_words(words: KnownWords | None, folder: str) -> None:
    """Save the words of the training questions in a checkpoint; if they are not known, no earlier list stays there."""
    if words is None:
        Path(folder, KNOWN_WORDS_FILE).unlink(missing_ok=True)
    else:
        words.save(folder)


def save_sidecar(model: nn.Module, folder: str, state_dict: dict | None) -> None:
    """Save the attached mask tokenizer to `mask_tokenizer/` in a checkpoint; do nothing if the model has none.

    Args:
        model: the LMM, wrapped or not.
        folder: the checkpoint.
        state_dict: the model's weights, gathered from all processes; their names may have prefixes of wrappers. None if
            nothing is sharded.
    """
    mask_tokenizer = find_attached_mask_tokenizer(model)
    if mask_tokenizer is None:
        return
    marker = f"{MASK_TOKENIZER_ATTRIBUTE}."
    gathered = {name.rpartition(marker)[2]: value for name, value in (state_dict or {}).items() if marker in name}
    save_gathered_sidecar(mask_tokenizer, folder, gathered)


def save_gathered_sidecar(mask_tokenizer: MaskTokenizer, folder: str, gathered: dict[str, Tensor]) -> None:
    """Save a mask tokenizer to `mask_tokenizer/` in a checkpoint.

    Args:
        mask_tokenizer: attached to an LMM, sharded or not.
        folder: the checkpoint.
        gathered: its trained weights, gathered from all processes. Empty if nothing is sharded.
    """
    sidecar = os.path.join(folder, SIDECAR_FOLDER)
    if isinstance(mask_tokenizer, Detokenizer):
        save_complete_mask_tokenizer(mask_tokenizer, sidecar, gathered)
    else:
        mask_tokenizer.save_pretrained(sidecar, state_dict=gathered or None)
    size = get_adapter_size(folder)
    if size is not None:
        logger.info(f"Saved an adapter of {size[0]:,} parameters, {size[1] / 2**20:.1f} MiB, in {folder}.")
