"""A checkpoint's folder `mask_tokenizer/`."""

from __future__ import annotations

import os
from pathlib import Path

from swift.utils import get_logger
from torch import nn

from himtok_plugin.mask_tokenizer import MaskTokenizer
from himtok_plugin.mask_tokenizer.released_weights import (
    RELEASED_FILE,
    SIDECAR_FOLDER,
    find_mask_tokenizer,
)

from .adapters import get_adapter_size
from .attached_mask_tokenizer import MASK_TOKENIZER_ATTRIBUTE, find_attached_mask_tokenizer
from .detokenizer import Detokenizer, save_complete_mask_tokenizer
from .sharding import load_unsharded

logger = get_logger()


def resolve_mask_tokenizer(asked: str | None, model_dir: str, adapters: list[str]) -> Path:
    """Where the mask tokenizer lies: the one asked for, else beside the adapter, else beside the model.

    Raises:
        ValueError: nowhere.
    """
    if asked:
        return find_mask_tokenizer(asked)
    for folder in (*adapters, model_dir):
        if (Path(folder) / SIDECAR_FOLDER).is_dir() or (Path(folder) / RELEASED_FILE).is_file():
            return find_mask_tokenizer(folder)
    raise ValueError(
        f"mask_tokenizer: none given, and {model_dir} has no folder {SIDECAR_FOLDER}/: expected --mask_tokenizer DIR"
    )


def load_mask_tokenizer(source: Path) -> MaskTokenizer:
    """The mask tokenizer of a folder or weights file."""
    if source.is_file():
        return MaskTokenizer.from_released(source)
    # Not sharded while loading (ZeRO-3): a whole copy is taken first, then DeepSpeed shards what it finds.
    with load_unsharded():
        return MaskTokenizer.from_pretrained(source)


def save_sidecar(model: nn.Module, folder: str, state_dict: dict | None) -> None:
    """Save the attached mask tokenizer into a checkpoint's `mask_tokenizer/`; nothing for a model without one.

    Args:
        model: the LMM, however it is wrapped.
        folder: the checkpoint.
        state_dict: the model's weights gathered over processes, names possibly with wrappers in front; None where no
            gathering was needed.
    """
    mask_tokenizer = find_attached_mask_tokenizer(model)
    if mask_tokenizer is None:
        return
    sidecar, marker = os.path.join(folder, SIDECAR_FOLDER), f"{MASK_TOKENIZER_ATTRIBUTE}."
    gathered = {name.rpartition(marker)[2]: value for name, value in (state_dict or {}).items() if marker in name}
    if isinstance(mask_tokenizer, Detokenizer):
        save_complete_mask_tokenizer(mask_tokenizer, sidecar, gathered)
    else:
        mask_tokenizer.save_pretrained(sidecar, state_dict=gathered or None)
    size = get_adapter_size(folder)
    if size is not None:
        logger.info(f"Saved an adapter of {size[0]:,} parameters, {size[1] / 2**20:.1f} MiB, in {folder}.")
