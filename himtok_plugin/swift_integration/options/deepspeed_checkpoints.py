"""DeepSpeed: whether a run shards parameters, and which checkpoints have no weights but DeepSpeed's own shards."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

TAG_FILE = "latest"  # DeepSpeed's, names the folder of the shards
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # of the whole model


def uses_zero3(deepspeed: Any) -> bool:
    """Whether a value of `--deepspeed` (a name of ms-swift's, a file, JSON or a dictionary) shards parameters."""
    if isinstance(deepspeed, str):
        if deepspeed in ("zero3", "zero3_offload"):
            return True
        try:
            if os.path.isfile(deepspeed):
                deepspeed = json.loads(Path(deepspeed).read_text(encoding="utf-8"))
            else:
                deepspeed = json.loads(deepspeed)
        except ValueError:
            return False  # another name of ms-swift's, or an error that ms-swift reports
    return isinstance(deepspeed, dict) and (deepspeed.get("zero_optimization") or {}).get("stage") == 3


def has_deepspeed_shards_only(checkpoint: str | Path) -> bool:
    """Whether a checkpoint can be resumed by DeepSpeed only.

    ZeRO-3 writes such checkpoints if `stage3_gather_16bit_weights_on_model_save` is false.
    """
    folder = Path(checkpoint)
    return (folder / TAG_FILE).is_file() and not any(next(folder.glob(pattern), None) for pattern in WEIGHTS)
