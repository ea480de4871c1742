"""The run card of ms-swift's inference and evaluation: what a report says of the run.

Contract: `run_card` reads arguments; nothing is loaded for it but files' bytes. `leave_card` puts it beside the result
file, once per run. Does not know results.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..provenance import RunCard, checkpoint_hash, package_versions
from .mask_runtime import MaskRuntime

_LEFT = "himtok_card_left"


def run_card(args: Any, source: Path, num_mask_tokens: int, **further: Any) -> RunCard:
    """Card of a run.

    Args:
        args: ms-swift's arguments, with this plugin's options.
        source: folder or file of the mask tokenizer.
        num_mask_tokens: k of the mask tokenizer.
        further: what else is to be told.
    """
    model = getattr(args, "model_dir", None) or getattr(args, "model", None)
    folders = [os.fspath(each) for each in (model, *(getattr(args, "adapters", None) or [])) if each]
    if not any(Path(source).is_relative_to(folder) for folder in folders):
        folders.append(os.fspath(source))
    return RunCard(
        checkpoint=folders,
        checkpoint_hash=checkpoint_hash(folders),
        num_mask_tokens=args.num_mask_tokens or num_mask_tokens,
        mask_decoding=args.mask_decoding,
        threshold=args.mask_threshold,
        resize=args.mask_resize,
        refiner=args.refiner,
        min_score=args.min_score,
        seed=getattr(args, "seed", None),
        temperature=getattr(args, "temperature", None),
        versions=package_versions(),
        further=further,
    )


def leave_card(args: Any, runtime: MaskRuntime) -> None:
    """Write the card beside the result file of `swift infer`; nothing without one, and in further processes."""
    result = getattr(args, "result_path", None)
    if not result or getattr(args, "rank", -1) > 0 or getattr(args, _LEFT, False):
        return
    setattr(args, _LEFT, True)
    card = run_card(args, runtime.source, runtime.num_mask_tokens, engine=getattr(args, "infer_backend", None))
    card.save(result)
