"""What a checkpoint says about its own use: how masks are decoded, which system message it was trained with.

Contract: `apply_checkpoint_settings` fills in options that were not given from `generation_config.json` in the model's
folder, where `himtok convert` writes them; checkpoints trained on from there keep them. `refuse_unconverted` tells
users of the authors' own files which command makes them usable. Does not know how the options are used.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from himtok_plugin.internvl_chat.chat_config import MODEL_TYPE

GENERATION_FILE = "generation_config.json"
DEFAULT_DECODING = "soft"
RELEASED_MODEL = "yayafengzi/InternVL2_5-HiMTok-8B"


def apply_checkpoint_settings(args: Any) -> None:
    """Fill in `system`, `mask_decoding` and `num_mask_tokens` where they were not given.

    Args:
        args: ms-swift's arguments with those of the plugin, its model found.
    Raises:
        ValueError: a checkpoint whose masks are decoded at a temperature that this package does not decode at.
    """
    from himtok_plugin.hierarchical_loss import LOGIT_SCALE

    info = getattr(args, "model_info", None)
    settings = {} if info is None else read_checkpoint_settings(Path(info.model_dir))
    temperature = settings.get("mask_temperature", 1 / LOGIT_SCALE)
    if temperature != 1 / LOGIT_SCALE:
        raise ValueError(f"{GENERATION_FILE}: mask_temperature: got {temperature!r}, expected {1 / LOGIT_SCALE}")
    if args.system is None:
        args.system = settings.get("system")
    if args.num_mask_tokens is None and args.mask_tokenizer is None:  # of the checkpoint's own mask tokenizer
        args.num_mask_tokens = settings.get("num_mask_tokens")
    if args.mask_decoding is None:
        args.mask_decoding = settings.get("mask_decoding", DEFAULT_DECODING)


def read_checkpoint_settings(folder: Path) -> dict[str, Any]:
    """generation_config.json of a checkpoint that was made by `himtok convert`; empty for any other."""
    settings = _read(folder / GENERATION_FILE)
    return settings if "mask_temperature" in settings else {}


def refuse_unconverted(model: str | None) -> None:
    """Refuse the authors' checkpoint as it was published.

    Args:
        model: folder or hub id.
    Raises:
        ValueError: it is that; the command that converts it is in the message.
    """
    if not model:
        return
    folder = Path(model)
    name = RELEASED_MODEL.rpartition("/")[2]
    if folder.is_dir():
        unconverted = _read(folder / "config.json").get("model_type") == MODEL_TYPE and _has_masks(folder)
    else:
        unconverted = model.replace("\\", "/").rpartition("/")[2].lower() == name.lower()
    if unconverted:
        raise ValueError(
            f"model: got {model!r}, the authors' files, which need code of their own. Convert them once: "
            f"`himtok convert {model} {name}-hf`, then give --model {name}-hf"
        )


def _has_masks(folder: Path) -> bool:
    """Whether a chat model comes with a mask tokenizer, beside its weights or, by their headers, among them."""
    from himtok_plugin.internvl_chat.source import SINGLE_FILES
    from himtok_plugin.mask_tokenizer.released_weights import CHAT_PREFIX, RELEASED_FILE

    if (folder / RELEASED_FILE).is_file():
        return True
    indices = sorted(folder.glob("*.index.json"))
    if indices:
        return any(f'"{CHAT_PREFIX}' in path.read_text(encoding="utf-8") for path in indices)
    files = [path for kind in SINGLE_FILES for path in folder.glob(kind)]
    return any(key.startswith(CHAT_PREFIX) for path in files for key in _keys(path))


def _keys(path: Path) -> list[str]:
    """Of a weights file."""
    from safetensors import SafetensorError, safe_open

    from himtok_plugin.mask_tokenizer.released_weights import read_pickle

    try:
        if path.suffix != ".safetensors":
            return list(map(str, read_pickle(path, mmap=True)))
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (OSError, ValueError, SafetensorError):
        return []  # whoever loads it says what is wrong with it


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # other readers of the file say what is wrong with it
    return content if isinstance(content, dict) else {}
