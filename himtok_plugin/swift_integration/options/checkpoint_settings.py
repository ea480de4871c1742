"""Options that a converted checkpoint sets itself: mask decoding, number of mask tokens, system message.

Contract: `himtok convert` writes them to `generation_config.json` in the model's folder, and further training keeps
them there. `apply_checkpoint_settings` uses them as defaults; options that the user sets take precedence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from himtok_plugin.files.text import read_text

GENERATION_FILE = "generation_config.json"
DEFAULT_DECODING: Literal["soft"] = "soft"


def apply_checkpoint_settings(args: Any) -> None:
    """Set `system`, `mask_decoding` and `num_mask_tokens` from the checkpoint, unless the user has set them.

    Args:
        args: ms-swift's arguments with the plugin's options, after ms-swift has located the model.
    Raises:
        ValueError: the checkpoint decodes masks at a softmax temperature that this package does not support.
    """
    from himtok_plugin.hierarchical_loss import LOGIT_SCALE

    info = getattr(args, "model_info", None)
    settings = {} if info is None else read_checkpoint_settings(Path(info.model_dir))
    temperature = settings.get("mask_temperature", 1 / LOGIT_SCALE)
    if temperature != 1 / LOGIT_SCALE:
        raise ValueError(f"{GENERATION_FILE}: mask_temperature: got {temperature!r}, expected {1 / LOGIT_SCALE}")
    if args.system is None:
        args.system = settings.get("system")
    if (
        args.num_mask_tokens is None and args.mask_tokenizer is None
    ):  # the checkpoint's limit holds for its own tokenizer
        args.num_mask_tokens = settings.get("num_mask_tokens")
    if args.mask_decoding is None:
        args.mask_decoding = settings.get("mask_decoding", DEFAULT_DECODING)


def read_checkpoint_settings(folder: Path) -> dict[str, Any]:
    """Read generation_config.json of a checkpoint that `himtok convert` made; return {} for any other checkpoint."""
    settings = read_json_or_empty(folder / GENERATION_FILE)
    return settings if "mask_temperature" in settings else {}


def read_json_or_empty(path: Path) -> dict[str, Any]:
    """Read a JSON object; return {} if the file is missing or holds something else."""
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError):
        return {}  # transformers reports what is wrong with the file when it loads the model
    return content if isinstance(content, dict) else {}
