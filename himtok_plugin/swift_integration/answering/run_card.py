"""The run card of ms-swift's inference and evaluation: what a report says of the run.

Contract: `make_run_card` reads arguments; nothing is loaded for it but files' bytes. `write_run_card` puts it beside
the result file, once per run. What an engine cannot do is not said to have been done, or refused. Does not know
results.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from himtok_plugin.evaluation.provenance import RunCard, checkpoint_hash, package_versions
from himtok_plugin.swift_integration.model.mask_runtime import MaskRuntime
from himtok_plugin.swift_integration.options.argument_checks import NATIVE_BACKENDS

_LEFT = "himtok_card_left"


def effective_decoding(args: Any) -> str:
    """How a run of `swift infer` decodes masks: hard where no code probabilities are told, whatever was asked for."""
    told = describe_probability_source(args)
    return told if told and args.mask_decoding == "soft" else "hard"


def describe_probability_source(args: Any) -> str | None:
    """Where a run of `swift infer` has code probabilities from; None where there are none, and masks have no score."""
    engine = getattr(args, "infer_backend", None) or NATIVE_BACKENDS[0]
    if engine in NATIVE_BACKENDS:
        return "soft" if getattr(args, "num_beams", 1) in (None, 1) else None
    # ms-swift returns no log-probabilities of SGLang's, and none that could be read with a stream.
    if engine == "sglang" or getattr(args, "stream", False) or not getattr(args, "logprobs", False):
        return None
    return f"soft, of the {getattr(args, 'top_logprobs', None) or 1} best log-probabilities per token"


def refuse_min_score_without_scores(args: Any) -> None:
    """ValueError for a `--min_score` that would leave out nothing."""
    if args.min_score and describe_probability_source(args) is None:
        engine, beams = getattr(args, "infer_backend", None), getattr(args, "num_beams", 1)
        raise ValueError(
            f"min_score: got {args.min_score}, expected 0: with infer_backend={engine!r}, num_beams={beams}, "
            f"logprobs={getattr(args, 'logprobs', False)}, stream={getattr(args, 'stream', False)} masks have no score"
        )


def make_run_card(args: Any, source: Path, num_mask_tokens: int, **further: Any) -> RunCard:
    """Card of a run of `swift infer`: what is done, where that is less than what was asked for.

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
    """Write the card beside the result file of `swift infer`; nothing without one, and in further processes.

    Raises:
        ValueError: an option that would have no effect.
    """
    refuse_min_score_without_scores(args)
    result = getattr(args, "result_path", None)
    if not result or getattr(args, "rank", -1) > 0 or getattr(args, _LEFT, False):
        return
    setattr(args, _LEFT, True)
    card = make_run_card(args, runtime.source, runtime.num_mask_tokens, engine=getattr(args, "infer_backend", None))
    card.save(result)
