"""Mask tokens in a text tokenizer and in the embeddings of an LMM: adding, finding and initializing them.

Works with any transformers tokenizer and with any model that has input and output embeddings, tied or not. Mask tokens
are added as *non-special* tokens, because servers strip special tokens from their output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AddedToken, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from himtok_plugin.mask_text import MASK_END, MASK_START, MASK_TOKEN_PREFIX, mask_token, mask_tokens

VOCABULARY_MULTIPLE = 64  # of which the number of token embeddings is a multiple, for fast matrix products
NOISE_SCALE = 0.1  # of new token embeddings around the mean of the old ones, in their standard deviations
PER_LAYER_EMBEDDING = "embed_tokens_per_layer"  # Gemma 4: embeddings that are added at every layer


@dataclass(frozen=True)
class MaskVocabulary:
    """The ids of the mask tokens in a text tokenizer.

    Attributes:
        start_id, end_id: ids of `<|mt_start|>` and `<|mt_end|>`.
        first_code_id: id of code 0; code c has id `first_code_id + c`.
        codebook_size: v, the number of codes.
    """

    start_id: int
    end_id: int
    first_code_id: int
    codebook_size: int

    @property
    def code_ids(self) -> slice:
        """Ids of the codes, as a slice over the vocabulary."""
        return slice(self.first_code_id, self.first_code_id + self.codebook_size)

    def ids(self) -> list[int]:
        """Ids of all mask tokens, ascending."""
        return sorted([self.start_id, self.end_id, *range(self.code_ids.start, self.code_ids.stop)])

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, codebook_size: int) -> MaskVocabulary:
        """Find the mask tokens in a text tokenizer.

        Raises:
            ValueError: a token is missing, there are more codes than `codebook_size`, or their ids are not consecutive.
        """
        known = tokenizer.get_vocab()
        missing = [token for token in mask_tokens(codebook_size) if token not in known]
        if missing:
            raise ValueError(
                f"text tokenizer lacks {len(missing)} of the {codebook_size + 2} mask tokens, first {missing[0]}"
            )
        if mask_token(codebook_size) in known:
            numbers = (token[len(MASK_TOKEN_PREFIX) : -2] for token in known if token.startswith(MASK_TOKEN_PREFIX))
            count = sum(number.isdigit() for number in numbers)
            raise ValueError(
                f"text tokenizer has {count} mask codes, the mask tokenizer has codebook_size={codebook_size}: "
                "expected the same number"
            )
        first = known[mask_token(0)]
        misplaced = next((c for c in range(codebook_size) if known[mask_token(c)] != first + c), None)
        if misplaced is not None:
            raise ValueError(
                f"text tokenizer has {mask_token(misplaced)} at id {known[mask_token(misplaced)]}, expected "
                f"{first + misplaced}: the codes must be in order"
            )
        return cls(known[MASK_START], known[MASK_END], first, codebook_size)


def extend_tokenizer(tokenizer: PreTrainedTokenizerBase, codebook_size: int) -> list[int]:
    """Add the mask tokens to a text tokenizer, in place, unless it has them.

    Returns:
        Ids of the added tokens; empty if the tokenizer has them already.

    Raises:
        ValueError: the tokenizer has only some of them, or a number of codes other than `codebook_size`.
    """
    known = tokenizer.get_vocab()
    wanted = mask_tokens(codebook_size)
    present = [token for token in wanted if token in known]
    if present:
        MaskVocabulary.of(tokenizer, codebook_size)  # raises unless all are present and in order
        return []
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in wanted])
    extended = tokenizer.get_vocab()
    return [extended[token] for token in wanted]


def extend_embeddings(
    model: PreTrainedModel,
    added_ids: list[int],
    vocabulary_size: int,
    features: Tensor | None = None,
    noise_scale: float = NOISE_SCALE,
) -> int:
    """Add token embeddings for new tokens to a model's input and output embeddings and initialize them.

    Embeddings beyond the old vocabulary that the model already has are initialized too, because they were never
    trained.

    Args:
        model: the LMM, changed in place.
        added_ids: ids of the new tokens.
        vocabulary_size: size of the text tokenizer, including the new tokens.
        features: (v, f) float32 of the codes. If set, codes with similar features get similar token embeddings;
            otherwise all are independent.
        noise_scale: how far the new embeddings are from the mean of the old ones, in their standard deviations.

    Returns:
        The `vocab_size` that the model's configuration must have.
    """
    # transformers types these layers as modules, without their weights.
    inputs: Any = model.get_input_embeddings()
    outputs: Any = model.get_output_embeddings()
    num_inputs = unsharded_shape(inputs.weight)[0]
    size = num_inputs if outputs is None else min(num_inputs, unsharded_shape(outputs.weight)[0])
    # A text tokenizer with unused ids (Phi-4) has ids beyond its size.
    needed = max(vocabulary_size, max(added_ids) + 1)
    if needed > size:
        extra, size = num_inputs - size, round_up_vocabulary(needed)
        model.resize_token_embeddings(size, mean_resizing=False)
        if extra:
            # Llama 3.2 Vision has 8 input embeddings beyond its vocab_size, which transformers drops when resizing and
            # expects when loading.
            larger = model._get_resized_embeddings(
                cast("nn.Embedding", model.get_input_embeddings()), size + extra, mean_resizing=False
            )
            model.set_input_embeddings(larger)
    added, first_new = torch.tensor(added_ids), min(added_ids)
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    weights = [inputs.weight]
    if outputs is not None and outputs.weight is not inputs.weight:
        weights.append(outputs.weight)
    for weight in weights:
        with gather_parameter(weight):
            directions = None if features is None else project_features(features, added_ids, weight.shape[1])
            initialise_token_embeddings(weight, added.to(weight.device), first_new, directions, noise_scale)
    for name, module in model.named_modules():
        if name.endswith(PER_LAYER_EMBEDDING):
            # Without noise, because adapters do not save these embeddings: they must be the same after loading.
            with gather_parameter(module.weight):
                initialise_token_embeddings(module.weight, added.to(module.weight.device), first_new, noise_scale=0)
    return size


def round_up_vocabulary(num_tokens: int) -> int:
    """Return the number of token embeddings of a model that is extended to a number of tokens."""
    return -(-num_tokens // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def unsharded_shape(weight: Tensor) -> torch.Size:
    """Shape of a whole parameter, also if ZeRO-3 has sharded it."""
    return getattr(weight, "ds_shape", weight.shape)


@contextmanager
def gather_parameter(weight: Tensor) -> Iterator[None]:
    """Context in which a parameter that ZeRO-3 has sharded is whole. Changes by process 0 are sent to all others."""
    if not hasattr(weight, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
        yield


def check_ids_are_text(config: PretrainedConfig, ids: list[int]) -> None:
    """Check that a model embeds the ids of the mask tokens as text.

    Args:
        config: configuration of the model.
        ids: ids of the mask tokens.

    Raises:
        ValueError: the model uses ids from some number on for images or audio (Gemma 3n), so no tokens can be added.
    """
    for name, part in vars(config).items():
        offset = getattr(part, "vocab_offset", None)
        if isinstance(offset, int) and max(ids) >= offset:
            raise ValueError(
                f"model_type={config.model_type!r}: mask tokens got ids {min(ids)} to {max(ids)}, but ids from "
                f"{offset} on belong to its {name}: expected a base model whose vocabulary can grow"
            )


@torch.no_grad()
def initialise_token_embeddings(
    weight: Tensor, ids: Tensor, num_old: int, directions: Tensor | None = None, noise_scale: float = NOISE_SCALE
) -> None:
    """Initialize token embeddings near the mean of the old ones, in place.

    A token with the mean embedding is about as likely as an average token, so training need not first make it less
    likely. The noise makes the new tokens different.

    Args:
        weight: (vocabulary, hidden) embedding matrix.
        ids: (n,) int64, the new tokens.
        num_old: number of old tokens, which have the first ids.
        directions: (n, hidden) float32 of unit variance, used instead of noise.
        noise_scale: in standard deviations of the old embeddings.
    """
    old = weight[:num_old].float()
    mean, std = old.mean(0), old.std(0)
    if directions is None:
        directions = torch.randn(len(ids), weight.shape[1], device=weight.device)
    weight[ids] = (mean + noise_scale * std * directions.to(weight.device)).to(weight.dtype)


@torch.no_grad()
def project_features(features: Tensor, ids: list[int], hidden: int) -> Tensor:
    """Map features to the embedding space by a random projection, which preserves distances in expectation.

    Args:
        features: (v, f) float32 of the codes.
        ids: ids of all mask tokens in the order of `mask_text.mask_tokens`: start, end, codes.
        hidden: width of the token embeddings.

    Returns:
        (v + 2, hidden) float32 of unit variance; the start and end tokens get noise.

    Raises:
        ValueError: the number of ids is not v + 2.
    """
    if len(ids) != len(features) + 2:
        raise ValueError(f"ids: got {len(ids)}, expected start, end and {len(features)} codes")
    centred = features.float().cpu() - features.float().cpu().mean(0)
    mapped = centred @ torch.randn(features.shape[1], hidden)
    return torch.cat([torch.randn(2, hidden), mapped / mapped.std().clamp(min=1e-6)])
