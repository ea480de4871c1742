"""Converts an InternVL chat model, such as the released HiMTok model, to a folder for transformers, ms-swift and vLLM.

`convert_chat_model` validates the configuration, the headers of the weights files, the text tokenizer and a tied output
head before it writes anything, and replaces the files of an earlier conversion when the new ones are complete.
`convert_released_mask_tokenizer` does the same for a mask tokenizer alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from himtok_plugin.lmm.vocabulary import MaskVocabulary
from himtok_plugin.mask_text import mask_tokens
from himtok_plugin.mask_tokenizer import MaskTokenizer, MaskTokenizerConfig
from himtok_plugin.mask_tokenizer.released_weights import (
    CHAT_PREFIX,
    RELEASED_FILE,
    SIDECAR_FOLDER,
    config_from_shapes,
)

from .chat_checkpoint import ChatCheckpoint, open_chat_checkpoint
from .chat_config import IMAGE_TOKEN_IDS, build_internvl_config, check_config, get_llm_architecture
from .fast_tokenizer import IMAGE_CONTEXT, build_fast_tokenizer
from .key_mapping import EMBEDDINGS, TensorRule, list_tensor_rules
from .output_folder import check_output_is_apart, get_output_folder
from .processor import TURN_END, build_generation_config, build_processor
from .tokenizer_files import read_added_tokens
from .weight_conversion import (
    ProgressCallback,
    check_keys_and_shapes,
    check_tied_tensors,
    convert_mask_tokenizer,
    convert_weights,
    get_mask_tokenizer_shapes,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class ConversionReport:
    """What was converted, and which ids were assumed.

    Attributes:
        codebook_size: number of codes of the mask tokenizer, None if the checkpoint does not have one.
        vocabulary_size: number of token embeddings of the language model.
        image_token_id: id of `<IMG_CONTEXT>` in config.json.
        is_image_token_known: False if no tokenizer file has that id, so that the one of InternVL2.5 models was taken.
        is_turn_end_known: False if no tokenizer file has the id of `<|im_end|>`, so that generation_config.json lacks
            it.
    """

    codebook_size: int | None
    vocabulary_size: int
    image_token_id: int
    is_image_token_known: bool
    is_turn_end_known: bool


def convert_chat_model(
    name: str,
    out: Path,
    skip_tokenizer: bool = False,
    image_token_id: int | None = None,
    progress: ProgressCallback = lambda done, total: None,
) -> ConversionReport:
    """Convert an InternVL chat model to transformers' InternVL, with its processor and its mask tokenizer.

    Args:
        name: folder or hub id.
        out: folder to write; the files of an earlier conversion there are replaced.
        skip_tokenizer: do not write the text tokenizer, the processor and the chat template.
        image_token_id: id of `<IMG_CONTEXT>`; None takes it from the tokenizer's files.
        progress: called with (tensors written, tensors in all) after each file.
    Raises:
        ValueError: this is not an InternVL chat model, keys are missing or unknown, a file is truncated, transformers'
            InternVL does not support a setting, the vocabulary is too small for the mask tokens, or `out` holds the
            files to convert or those of another model.
    """
    checkpoint = open_chat_checkpoint(name)
    check_output_is_apart(checkpoint.folder, out)
    folder = get_output_folder(out)
    folder.check(force=True)
    config = checkpoint.config
    check_config(config)
    rules = list_tensor_rules(config)
    check_keys_and_shapes(checkpoint, rules)
    mask_config, separate_mask_tokenizer = _read_mask_tokenizer(checkpoint)
    codebook_size = None if mask_config is None else mask_config.codebook_size
    tokenizer = processor = None
    if not skip_tokenizer:
        tokenizer = build_fast_tokenizer(checkpoint.folder)
        processor = build_processor(config, tokenizer)
    ids = _read_token_ids(checkpoint, tokenizer)
    _check_vocabulary_size(config, tokenizer, ids, codebook_size)
    image_token_id, is_image_token_known = _find_image_token(config, ids, image_token_id)
    converted_config = build_internvl_config(config, image_token_id, _get_dtype(checkpoint, rules))
    num_mask_tokens = None if mask_config is None else mask_config.num_mask_tokens
    generation = build_generation_config(config, tokenizer, ids.get(TURN_END), num_mask_tokens)
    check_tied_tensors(checkpoint, rules)

    with folder.fill() as new:
        convert_weights(checkpoint, rules, new, progress)
        if separate_mask_tokenizer is not None:
            separate_mask_tokenizer.save_pretrained(new / SIDECAR_FOLDER)
        elif mask_config is not None:
            (new / SIDECAR_FOLDER).mkdir()
            convert_mask_tokenizer(checkpoint, new / SIDECAR_FOLDER)
            mask_config.save_pretrained(new / SIDECAR_FOLDER)
        if processor is not None:
            processor.save_pretrained(new)
        generation.save_pretrained(new)
        converted_config.save_pretrained(new)
    vocabulary_size = config["llm_config"]["vocab_size"]
    return ConversionReport(codebook_size, vocabulary_size, image_token_id, is_image_token_known, TURN_END in ids)


def convert_released_mask_tokenizer(file: Path, out: Path) -> None:
    """Convert a weights file that holds only a mask tokenizer, such as himtok.pth.

    Raises:
        ValueError: the file does not hold a mask tokenizer, or `out` holds the file to convert or another model.
    """
    model = MaskTokenizer.from_released(file)
    check_output_is_apart(file, out)
    with get_output_folder(out).fill() as new:
        model.save_pretrained(new)


def _read_mask_tokenizer(checkpoint: ChatCheckpoint) -> tuple[MaskTokenizerConfig | None, MaskTokenizer | None]:
    """Return its configuration, and the model itself if its weights are in himtok.pth beside the checkpoint."""
    shapes = get_mask_tokenizer_shapes(checkpoint)
    if shapes:
        source = f"{checkpoint.folder}, keys {CHAT_PREFIX}*"
        config = config_from_shapes(shapes, source)
        MaskTokenizer.check_shapes(config, shapes, source)
        config.architectures = [MaskTokenizer.__name__]
        return config, None
    if (checkpoint.folder / RELEASED_FILE).is_file():
        model = MaskTokenizer.from_released(checkpoint.folder / RELEASED_FILE)
        return model.config, model
    return None, None


def _read_token_ids(checkpoint: ChatCheckpoint, tokenizer: PreTrainedTokenizerFast | None) -> dict[str, int]:
    """Map tokens to ids: the whole vocabulary, or the added tokens if the text tokenizer is skipped."""
    if tokenizer is not None:
        return tokenizer.get_vocab()
    return {token.content: token_id for token_id, token in read_added_tokens(checkpoint.folder).items()}


def _check_vocabulary_size(
    config: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerFast | None,
    ids: Mapping[str, int],
    codebook_size: int | None,
) -> None:
    vocabulary_size = config["llm_config"]["vocab_size"]
    if codebook_size is None:
        return
    if tokenizer is not None:
        MaskVocabulary.of(tokenizer, codebook_size)  # raises unless it has all mask tokens, in order
    needed, why = codebook_size + 2, f"for {codebook_size} codes, start and end"
    stated = sorted(ids[token] for token in mask_tokens(codebook_size) if token in ids)
    if stated and stated[-1] >= needed:
        needed, why = stated[-1] + 1, f"for mask tokens with ids {stated[0]} to {stated[-1]}"
    if vocabulary_size < needed:
        raise ValueError(f"llm_config.vocab_size: got {vocabulary_size}, expected at least {needed} {why}")


def _find_image_token(config: Mapping[str, Any], ids: Mapping[str, int], given: int | None) -> tuple[int, bool]:
    """Return the id of `<IMG_CONTEXT>`, and False if neither the caller nor a tokenizer file states it."""
    size, found = config["llm_config"]["vocab_size"], ids.get(IMAGE_CONTEXT)
    if given is not None and found not in (None, given):
        raise ValueError(f"image_token_id: got {given}, expected {found}, the id of {IMAGE_CONTEXT} in the tokenizer")
    if given is not None and not 0 <= given < size:
        raise ValueError(f"image_token_id: got {given}, expected 0 to {size - 1}, an id of the model's vocabulary")
    token_id = found if given is None else given
    if token_id is None:
        return IMAGE_TOKEN_IDS[get_llm_architecture(config)], False
    if not 0 <= token_id < size:
        raise ValueError(f"llm_config.vocab_size: got {size}, expected more than {token_id}, the id of {IMAGE_CONTEXT}")
    return token_id, True


def _get_dtype(checkpoint: ChatCheckpoint, rules: Sequence[TensorRule]) -> str:
    """Return the dtype of the token embeddings as they are stored, whatever the configuration states."""
    embeddings = next(rule.source for rule in rules if EMBEDDINGS in rule.targets)
    return str(checkpoint.tensors()[embeddings].dtype).removeprefix("torch.")
