"""The run card of an inference run: checkpoint, options and versions, written beside the result file.

Contract: the card states what the engine does, not what the options request: with an engine that returns no
probabilities, masks are decoded hard. An option that would have no effect is refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from himtok_plugin.evaluation.provenance import RunCard, checkpoint_hash, package_versions
from himtok_plugin.swift_integration.model.mask_runtime import MaskRuntime
from himtok_plugin.swift_integration.options.argument_checks import NATIVE_BACKENDS

from .engine_logprobs import MASK_TOP_LOGPROBS

_WRITTEN = "himtok_run_card_written"  # attribute of the arguments


def effective_decoding(args: Any) -> str:
    """Return how a run of `swift infer` decodes masks: always hard if there are no code probabilities."""
    source = describe_probability_source(args)
    return source if source and args.mask_decoding == "soft" else "hard"


def describe_probability_source(args: Any) -> str | None:
    """Describe where code probabilities of `swift infer` come from; None if there are none and masks have no score."""
    engine = getattr(args, "infer_backend", None) or NATIVE_BACKENDS[0]
    if engine in NATIVE_BACKENDS:
        return "soft" if getattr(args, "num_beams", 1) in (None, 1) else None
    requested = (getattr(args, "top_logprobs", None) or 1) if getattr(args, "logprobs", False) else 0
    if args.mask_decoding == "soft":
        requested = max(requested, MASK_TOP_LOGPROBS)
    # ms-swift returns no log-probabilities with SGLang; the streams of LMDeploy are not read.
    if engine == "sglang" or (engine == "lmdeploy" and getattr(args, "stream", False)) or not requested:
        return None
    return f"soft, of the {requested} best log-probabilities per token"


def refuse_min_score_without_scores(args: Any) -> None:
    """Refuse a `--min_score` that would have no effect.

    Raises:
        ValueError: masks of this run have no score.
    """
    if args.min_score and describe_probability_source(args) is None:
        names = ("infer_backend", "mask_decoding", "num_beams", "logprobs", "stream")
        values = ", ".join(f"{name}={getattr(args, name)!r}" for name in names if hasattr(args, name))
        raise ValueError(f"min_score: got {args.min_score}, expected 0: with {values} masks have no score")


def make_run_card(args: Any, source: Path, num_mask_tokens: int, **further: Any) -> RunCard:
    """Make the card of a run of `swift infer`.

    Args:
        args: ms-swift's arguments with the plugin's options.
        source: folder or file of the mask tokenizer.
        num_mask_tokens: k of the mask tokenizer.
        further: additional entries.
    """
    model = getattr(args, "model_dir", None) or getattr(args, "model", None)
    folders = [os.fspath(each) for each in (model, *(getattr(args, "adapters", None) or [])) if each]
    if not any(Path(source).is_relative_to(folder) for folder in folders):
        folders.append(os.fspath(source))
    return RunCard(
        checkpoint=folders,
        checkpoint_hash=checkpoint_hash(folders),
        num_mask_tokens=args.num_mask_tokens or num_mask_tokens,
        mask_decoding=effective_decoding(args),
        threshold=args.mask_threshold,
        resize=args.mask_resize,
        refiner=args.refiner,
        min_score=args.min_score,
        seed=getattr(args, "seed", None),
        temperature=getattr(args, "temperature", None),
        versions=package_versions(),
        further=further,
    )


def write_run_card(args: Any, runtime: MaskRuntime) -> None:
    """Write the card beside the result file of `swift infer`, once per run and in the first process only.

    Raises:
        ValueError: an option would have no effect.
    """
    refuse_min_score_without_scores(args)
    result = getattr(args, "result_path", None)
    if not result or getattr(args, "rank", -1) > 0 or getattr(args, _WRITTEN, False):
        return
    setattr(args, _WRITTEN, True)
    card = make_run_card(args, runtime.source, runtime.num_mask_tokens, engine=getattr(args, "infer_backend", None))
    card.save(result)
