"""Constraints on the answers of a run, in the form that each inference engine needs.

Contract: `build_mask_grammar` makes the logits processor for ms-swift's own engine, `build_answer_pattern` the same
constraint as a regular expression, and `constrain_engine` makes an engine of vLLM, SGLang or LMDeploy use it.
"""

from __future__ import annotations

from copy import copy
from functools import wraps
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from himtok_plugin.lmm.generation import MaskGrammar
from himtok_plugin.lmm.token_automaton import TokenAutomaton, free_text_grammar, labelled_masks_grammar, token_texts
from himtok_plugin.lmm.vocabulary import MaskVocabulary
from himtok_plugin.mask_text import answer_regex
from himtok_plugin.swift_integration.options.arguments import HimTokArguments


def build_mask_grammar(
    settings: HimTokArguments,
    vocabulary: MaskVocabulary,
    num_tokens: int,
    tokenizer: PreTrainedTokenizerBase,
    generate_kwargs: dict[str, Any],
    prompt: torch.Tensor | None,
    automata: dict[Any, TokenAutomaton],
) -> MaskGrammar:
    """Build the logits processor of one `generate` call.

    Args:
        settings: the run's options.
        vocabulary: ids of the mask tokens.
        num_tokens: mask tokens of a generated mask.
        tokenizer: the text tokenizer.
        generate_kwargs: arguments of the call.
        prompt: (b, n) int64 token ids of the prompts, if the call has embeddings instead.
        automata: cache of token automata, which take seconds to build for a large vocabulary; changed in place.
    """
    config = generate_kwargs.get("generation_config")
    stops = find_stop_ids(tokenizer, config)
    given = generate_kwargs.get("input_ids")
    key = settings.mask_labels, stops
    if key not in automata:
        grammar = labelled_masks_grammar() if settings.mask_labels else free_text_grammar()
        automata[key] = TokenAutomaton(grammar, token_texts(tokenizer), vocabulary, stops)
    return MaskGrammar(
        vocabulary,
        num_tokens,
        prompt,
        prompt_length=0 if given is None else given.shape[1],
        text=automata[key],
        min_masks=settings.min_masks,
        max_masks=settings.max_masks,
        stop_ids=stops,
        max_new_tokens=getattr(config, "max_new_tokens", None),
        early_stop=settings.mask_early_stop,
    )


def find_stop_ids(tokenizer: PreTrainedTokenizerBase, config: Any) -> tuple[int, ...]:
    """Return the ids of tokens that end an answer: end-of-text tokens and ms-swift's stop words of one token."""
    ends = getattr(config, "eos_token_id", None)
    ends = tokenizer.eos_token_id if ends is None else ends
    found = set(ends if isinstance(ends, list | tuple) else [] if ends is None else [ends])
    for word in getattr(config, "stop_words", None) or []:
        ids = tokenizer.encode(word, add_special_tokens=False) if isinstance(word, str) else word
        if len(ids) == 1:
            found.add(ids[0])
    return tuple(sorted(found))


def build_answer_pattern(settings: HimTokArguments, codebook_size: int, num_tokens: int) -> str | None:
    """Build the regular expression that a run's answers match; None if generation is unconstrained.

    Args:
        settings: the run's options.
        codebook_size: v.
        num_tokens: mask tokens of a generated mask.
    """
    if not settings.constrained_decoding:
        return None
    return answer_regex(codebook_size, num_tokens, settings.min_masks, settings.max_masks, settings.mask_labels)


def find_engine_kind(engine: Any) -> str | None:
    """Return which library an engine of ms-swift runs: `vllm`, `sglang` or `lmdeploy`; None for ms-swift's own engine.

    By class names, because importing a class imports the library.
    """
    names = {cls.__name__ for cls in type(engine).__mro__}
    return next((kind for kind in ("vllm", "sglang", "lmdeploy") if f"{kind.capitalize()}Engine" in names), None)


def constrain_engine(engine: Any, pattern: str | None) -> None:
    """Make an engine of vLLM, SGLang or LMDeploy constrain every answer to `pattern`; other engines stay unchanged.

    A request's own pattern (`--structured_outputs_regex`) takes precedence. ms-swift passes it to vLLM only; for the
    other two it is set in their sampling parameters here.

    Args:
        engine: an inference engine of ms-swift.
        pattern: regular expression of an answer; None for unconstrained generation.
    """
    kind = find_engine_kind(engine)
    if kind is None or pattern is None:
        return
    prepare = engine._prepare_generation_config

    @wraps(prepare)
    def _prepare_generation_config(request_config: Any, *args: Any, **kwargs: Any) -> Any:
        own = getattr(request_config, "structured_outputs_regex", None)
        if kind == "vllm" and not own:
            request_config = copy(request_config)
            request_config.structured_outputs_regex = pattern
        prepared = prepare(request_config, *args, **kwargs)
        if kind == "sglang":
            prepared["regex"] = own or pattern
        elif kind == "lmdeploy":
            prepared.response_format = {"type": "regex_schema", "regex_schema": own or pattern}
        return prepared

    engine._prepare_generation_config = _prepare_generation_config
