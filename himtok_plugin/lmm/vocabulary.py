"""Mask tokens in a text tokenizer: adding them, ids <-> codes, and initialising their embedding rows.

Works on any transformers tokenizer and on any model with input and output embeddings, tied or not. The tokens are added
as *non-special* ones, because servers strip special tokens from their output. Does not know of masks and of ms-swift.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AddedToken, PretrainedConfig, PreTrainedTokenizerBase

from himtok_plugin.mask_text import MASK_END, MASK_START, MASK_TOKEN_PREFIX, mask_token, mask_tokens

ROWS_MULTIPLE = 64  # embedding matrices grow to a multiple of this, which keeps matrix products fast
NOISE_SCALE = 0.1  # of new rows around the old rows' mean, in units of the old rows' standard deviation
PER_LAYER_EMBEDDING = "embed_tokens_per_layer"  # Gemma 4: what every layer adds to a token


@dataclass(frozen=True)
class MaskVocabulary:
    """Where the mask tokens stand among the ids of a text tokenizer.

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
        """The columns of the codes in a matrix over the vocabulary."""
        return slice(self.first_code_id, self.first_code_id + self.codebook_size)

    def ids(self) -> list[int]:
        """Ids of all mask tokens in ascending order."""
        return sorted([self.start_id, self.end_id, *range(self.code_ids.start, self.code_ids.stop)])

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, codebook_size: int) -> MaskVocabulary:
        """Look the mask tokens up.

        Raises:
            ValueError: a token is missing, there are codes beyond the codebook, or the codes' ids are not in order.
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
                "they do not belong together"
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
    """Add the mask tokens that are missing; changes the tokenizer in place.

    Returns:
        ids of the tokens that were added, empty when all were there.

    Raises:
        ValueError: only some are there, or those there do not fit `codebook_size`.
    """
    known = tokenizer.get_vocab()
    wanted = mask_tokens(codebook_size)
    present = [token for token in wanted if token in known]
    if present:
        MaskVocabulary.of(tokenizer, codebook_size)  # all of them, or an error that says which
        return []
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in wanted])
    return tokenizer.convert_tokens_to_ids(wanted)


def extend_embeddings(
    model: nn.Module, added_ids: list[int], vocabulary_size: int, codebook: Tensor | None = None
) -> int:
    """Make room for new tokens in a model's input and output embeddings and initialise their rows.

    Rows are also initialised where the matrices had room to spare, since those rows were never trained.

    Args:
        model: has `get_input_embeddings`, `get_output_embeddings`, `resize_token_embeddings`.
        added_ids: ids of the new tokens.
        vocabulary_size: entries of the text tokenizer after adding.
        codebook: (v, d) float32; codes whose rows in it are alike then begin with rows that are alike. None: each
            new row begins with noise of its own.

    Returns:
        What the model's configuration has to say as `vocab_size`.
    """
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    input_rows = full_shape(inputs.weight)[0]
    rows = input_rows if outputs is None else min(input_rows, full_shape(outputs.weight)[0])
    # A text tokenizer that leaves ids out (Phi-4) has ids beyond its number of entries.
    needed = max(vocabulary_size, max(added_ids) + 1)
    if needed > rows:
        extra, rows = input_rows - rows, -(-needed // ROWS_MULTIPLE) * ROWS_MULTIPLE
        model.resize_token_embeddings(rows, mean_resizing=False)
        if extra:
            # Llama 3.2 Vision: 8 input rows beyond its vocab_size, expected at reloading, forgotten by transformers.
            wider = model._get_resized_embeddings(model.get_input_embeddings(), rows + extra, mean_resizing=False)
            model.set_input_embeddings(wider)
    added, first_new = torch.tensor(added_ids), min(added_ids)
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    weights = [inputs.weight]
    if outputs is not None and outputs.weight is not inputs.weight:
        weights.append(outputs.weight)
    for weight in weights:
        with gathered_parameter(weight):
            directions = None if codebook is None else code_directions(codebook, added_ids, weight.shape[1])
            initialise_token_embeddings(weight, added.to(weight.device), first_new, directions)
    for name, module in model.named_modules():
        if name.endswith(PER_LAYER_EMBEDDING):
            # Without noise: an adapter does not save these rows, and they must be the same when it is loaded.
            with gathered_parameter(module.weight):
                initialise_token_embeddings(module.weight, added.to(module.weight.device), first_new, noise_scale=0)
    return rows


def full_shape(weight: Tensor) -> torch.Size:
    """Shape of a parameter, also where ZeRO-3 has left a piece of it in this process."""
    return getattr(weight, "ds_shape", weight.shape)


@contextmanager
def gathered_parameter(weight: Tensor) -> Iterator[None]:
    """Within it a parameter that ZeRO-3 has sharded is whole; what process 0 writes into it, all of them get."""
    if not hasattr(weight, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
        yield


def check_ids_are_text(config: PretrainedConfig, ids: list[int]) -> None:
    """Refuse ids that the model embeds as something else than text, whatever its text tokenizer says.

    Args:
        config: of the model.
        ids: of the mask tokens.

    Raises:
        ValueError: from some id on, all are images or sounds (Gemma 3n), so that no token can be added.
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
    weight: Tensor, rows: Tensor, num_old: int, directions: Tensor | None = None, noise_scale: float = NOISE_SCALE
) -> None:
    """Draw rows near the mean of the old ones, in place.

    At the mean a new token is as likely as an average old one, so the first steps are not spent on unlearning; the
    noise tells the new tokens apart.

    Args:
        weight: (vocabulary, hidden) embedding matrix.
        rows: (n,) int64 rows to draw.
        num_old: the first so many rows are the old ones.
        directions: (n, hidden) float32 of unit variance instead of noise.
        noise_scale: in units of the old rows' standard deviation.
    """
    old = weight[:num_old].float()
    mean, std = old.mean(0), old.std(0)
    if directions is None:
        directions = torch.randn(len(rows), weight.shape[1], device=weight.device)
    weight[rows] = (mean + noise_scale * std * directions.to(weight.device)).to(weight.dtype)


@torch.no_grad()
def code_directions(codebook: Tensor, ids: list[int], hidden: int) -> Tensor:
    """The codebook in the embedding space, by a random map that keeps distances in expectation.

    Args:
        codebook: (v, d) float32.
        ids: of all mask tokens, start and end first, then the codes in order, as `mask_text.mask_tokens` lists them.
        hidden: width of the embeddings.

    Returns:
        (v + 2, hidden) float32 of unit variance; start and end are noise.
    """
    if len(ids) != len(codebook) + 2:
        raise ValueError(f"ids: got {len(ids)}, expected start, end and {len(codebook)} codes")
    centred = codebook.float().cpu() - codebook.float().cpu().mean(0)
    mapped = centred @ torch.randn(codebook.shape[1], hidden)
    return torch.cat([torch.randn(2, hidden), mapped / mapped.std().clamp(min=1e-6)])
