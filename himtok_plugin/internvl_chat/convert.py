"""An InternVL chat model, such as the released HiMTok model, into a folder for today's transformers, ms-swift and vLLM.

Contract: `convert_chat_model` checks everything that can be told from the headers of the files, the configuration and
the tokenizer, and a tied output head, before it writes or deletes anything; config.json goes first and comes last, so
that an interrupted conversion is no model. `convert_released` checks and clears the same way for the mask tokenizer
alone. Does not know keys, tensors and file formats.
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

from .chat_config import IMAGE_TOKEN_IDS, check_config, llm_architecture, native_config
from .layout import EMBEDDINGS, Rule, chat_layout
from .output import check_apart, clear
from .processor import TURN_END, generation_config, native_processor
from .source import ChatCheckpoint, open_chat_model
from .token_files import added_tokens
from .tokenizer import IMAGE_CONTEXT, fast_tokenizer
from .weights import (
    Progress,
    check_layout,
    check_tied,
    convert_mask_tokenizer,
    convert_weights,
    mask_tokenizer_shapes,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Conversion:
    """What came of a conversion.

    Attributes:
        codebook_size: codes of the mask tokenizer, None if the checkpoint has none.
        vocabulary_rows: of the language model's embeddings.
        image_token_id: of `<IMG_CONTEXT>` in config.json.
        image_token_known: False if it is only what InternVL2.5 models have, as no tokenizer said it.
        turn_end_known: False if generation_config.json lacks `<|im_end|>`, as no tokenizer said its id.
    """

    codebook_size: int | None
    vocabulary_rows: int
    image_token_id: int
    image_token_known: bool
    turn_end_known: bool


def convert_chat_model(
    name: str,
    out: Path,
    skip_tokenizer: bool = False,
    image_token_id: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Conversion:
    """Write an InternVL chat model as transformers' InternVL, its processor, and its mask tokenizer beside it.

    Args:
        name: folder or hub id.
        out: folder to write; what an earlier conversion wrote there is removed.
        skip_tokenizer: leave text tokenizer, processor and chat template out.
        image_token_id: id of `<IMG_CONTEXT>`; None: as the tokenizer's files say.
        progress: told of (tensors done, tensors in all).
    Raises:
        ValueError: no InternVL chat model, keys that are missing or left over, a file that is cut short, settings that
            transformers' InternVL does not have, a vocabulary without room for the mask tokens, or an output folder in
            which the model lies itself.
    """
    checkpoint = open_chat_model(name)
    check_apart(checkpoint.folder, out)
    config = checkpoint.config
    check_config(config)
    rules = chat_layout(config)
    check_layout(checkpoint, rules)
    mask_config, from_file = _mask_tokenizer(checkpoint)
    codebook_size = None if mask_config is None else mask_config.codebook_size
    tokenizer = processor = None
    if not skip_tokenizer:
        tokenizer = fast_tokenizer(checkpoint.folder)
        processor = native_processor(config, tokenizer)
    ids = _known_ids(checkpoint, tokenizer)
    _check_vocabulary(config, tokenizer, ids, codebook_size)
    image_token_id, image_token_known = _image_token(config, ids, image_token_id)
    native = native_config(config, image_token_id, _dtype(checkpoint, rules))
    tokens = None if mask_config is None else mask_config.num_mask_tokens
    generation = generation_config(config, tokenizer, ids.get(TURN_END), tokens)
    check_tied(checkpoint, rules)

    clear(out)
    convert_weights(checkpoint, rules, out, progress)
    if from_file is not None:
        from_file.save_pretrained(out / SIDECAR_FOLDER)
    elif mask_config is not None:
        (out / SIDECAR_FOLDER).mkdir(exist_ok=True)
        convert_mask_tokenizer(checkpoint, out / SIDECAR_FOLDER)
        mask_config.save_pretrained(out / SIDECAR_FOLDER)
    if processor is not None:
        processor.save_pretrained(out)
    generation.save_pretrained(out)
    native.save_pretrained(out)
    rows = config["llm_config"]["vocab_size"]
    return Conversion(codebook_size, rows, image_token_id, image_token_known, TURN_END in ids)


def convert_released(file: Path, out: Path) -> None:
    """Write the mask tokenizer of a weights file that holds nothing else, such as himtok.pth.

    Raises:
        ValueError: no mask tokenizer, or an output folder in which the file lies itself.
    """
    model = MaskTokenizer.from_released(file)
    check_apart(file, out)
    clear(out)
    model.save_pretrained(out)


def _mask_tokenizer(checkpoint: ChatCheckpoint) -> tuple[MaskTokenizerConfig | None, MaskTokenizer | None]:
    """Its configuration; and itself, if it does not stand in the checkpoint but in himtok.pth beside it."""
    shapes = mask_tokenizer_shapes(checkpoint)
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


def _known_ids(checkpoint: ChatCheckpoint, tokenizer: PreTrainedTokenizerFast | None) -> dict[str, int]:
    """Tokens and their ids, as far as they are known: without a tokenizer those that files list beside its model."""
    if tokenizer is not None:
        return tokenizer.get_vocab()
    return {token.content: token_id for token_id, token in added_tokens(checkpoint.folder).items()}


def _check_vocabulary(
    config: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerFast | None,
    ids: Mapping[str, int],
    codebook_size: int | None,
) -> None:
    rows = config["llm_config"]["vocab_size"]
    if codebook_size is None:
        return
    if tokenizer is not None:
        MaskVocabulary.of(tokenizer, codebook_size)  # all of them and in order
    needed, why = codebook_size + 2, f"for {codebook_size} codes, start and end"
    stated = sorted(ids[token] for token in mask_tokens(codebook_size) if token in ids)
    if stated and stated[-1] >= needed:
        needed, why = stated[-1] + 1, f"for mask tokens with ids {stated[0]} to {stated[-1]}"
    if rows < needed:
        raise ValueError(f"llm_config.vocab_size: got {rows}, expected at least {needed} {why}")


def _image_token(config: Mapping[str, Any], ids: Mapping[str, int], given: int | None) -> tuple[int, bool]:
    """Id of `<IMG_CONTEXT>`, and whether it is known."""
    rows, found = config["llm_config"]["vocab_size"], ids.get(IMAGE_CONTEXT)
    if given is not None and found not in (None, given):
        raise ValueError(f"image_token_id: got {given}, expected {found}, the id of {IMAGE_CONTEXT} in the tokenizer")
    if given is not None and not 0 <= given < rows:
        raise ValueError(f"image_token_id: got {given}, expected 0 to {rows - 1}, an id of the model's vocabulary")
    if given is None and found is None:
        return IMAGE_TOKEN_IDS[llm_architecture(config)], False
    token_id = found if given is None else given
    if not 0 <= token_id < rows:
        raise ValueError(f"llm_config.vocab_size: got {rows}, expected more than {token_id}, the id of {IMAGE_CONTEXT}")
    return token_id, True


def _dtype(checkpoint: ChatCheckpoint, rules: Sequence[Rule]) -> str:
    """Of the embeddings, whatever the configuration says: it is what the weights are written in."""
    embeddings = next(rule.source for rule in rules if EMBEDDINGS in rule.targets)
    return str(checkpoint.tensors()[embeddings].dtype).removeprefix("torch.")
