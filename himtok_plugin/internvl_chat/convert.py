"""An InternVL chat model, such as the released HiMTok model, into a folder for today's transformers, ms-swift and vLLM.

Contract: `convert_chat_model` checks everything that can be told from the headers of the files, the configuration and
the tokenizer before it writes; config.json comes last, so that an interrupted conversion is no model. Does not know
keys, tensors and file formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..mask_tokenizer import MaskTokenizer, MaskTokenizerConfig
from ..mask_tokenizer.conversion import CHAT_PREFIX, RELEASED_FILE, SIDECAR_FOLDER, check_released, load_released
from ..vocabulary import MaskVocabulary
from .configuration import IMAGE_TOKEN_IDS, check_config, llm_architecture, native_config
from .layout import chat_layout
from .processor import generation_config, native_processor
from .source import ChatCheckpoint, open_chat_model
from .tokenizer import IMAGE_CONTEXT, added_tokens, fast_tokenizer
from .weights import Progress, check_layout, convert_mask_tokenizer, convert_weights, mask_tokenizer_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Conversion:
    """What came of a conversion.

    Attributes:
        codebook_size: codes of the mask tokenizer, None if the checkpoint has none.
        image_token_id: of `<IMG_CONTEXT>` in config.json.
        image_token_known: False if it is only what InternVL2.5 models have, as no tokenizer said it.
    """

    codebook_size: int | None
    image_token_id: int
    image_token_known: bool


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
        out: folder to write.
        skip_tokenizer: leave text tokenizer, processor and chat template out.
        image_token_id: id of `<IMG_CONTEXT>`; None: as the tokenizer's files say.
        progress: told of (tensors done, tensors in all).
    Raises:
        ValueError: no InternVL chat model, keys that are missing or left over, a file that is cut short, settings that
            transformers' InternVL does not have, or a vocabulary without room for the mask tokens.
    """
    checkpoint = open_chat_model(name)
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
    _check_vocabulary(config, tokenizer, codebook_size)
    image_token_id, known = _image_token(checkpoint, tokenizer, image_token_id)
    native = native_config(config, image_token_id, _dtype(checkpoint))
    tokens = None if mask_config is None else mask_config.num_mask_tokens
    generation = generation_config(config, tokenizer, tokens)

    out.mkdir(parents=True, exist_ok=True)
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
    return Conversion(codebook_size, image_token_id, known)


def _mask_tokenizer(checkpoint: ChatCheckpoint) -> tuple[MaskTokenizerConfig | None, MaskTokenizer | None]:
    """Its configuration; and itself, if it does not stand in the checkpoint but in himtok.pth beside it."""
    shapes = mask_tokenizer_shapes(checkpoint)
    if shapes:
        config = check_released(shapes, f"{checkpoint.folder}, keys {CHAT_PREFIX}*")
        config.architectures = [MaskTokenizer.__name__]
        return config, None
    if (checkpoint.folder / RELEASED_FILE).is_file():
        model = load_released(checkpoint.folder / RELEASED_FILE)
        return model.config, model
    return None, None


def _check_vocabulary(
    config: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast | None, codebook_size: int | None
) -> None:
    rows = config["llm_config"]["vocab_size"]
    if codebook_size is None:
        return
    needed, why = codebook_size + 2, f"for {codebook_size} codes, start and end"
    if tokenizer is not None:
        ids = MaskVocabulary.of(tokenizer, codebook_size).ids()
        needed, why = max(ids) + 1, f"for mask tokens with ids {min(ids)} to {max(ids)}"
    if rows < needed:
        raise ValueError(f"llm_config.vocab_size: got {rows}, expected at least {needed} {why}")


def _image_token(
    checkpoint: ChatCheckpoint, tokenizer: PreTrainedTokenizerFast | None, given: int | None
) -> tuple[int, bool]:
    """Id of `<IMG_CONTEXT>`, and whether it is known."""
    rows = checkpoint.config["llm_config"]["vocab_size"]
    if tokenizer is not None:
        found: int | None = tokenizer.convert_tokens_to_ids(IMAGE_CONTEXT)
    else:
        named = {token.content: token_id for token_id, token in added_tokens(checkpoint.folder).items()}
        found = named.get(IMAGE_CONTEXT)
    if given is not None and found not in (None, given):
        raise ValueError(f"image_token_id: got {given}, expected {found}, the id of {IMAGE_CONTEXT} in the tokenizer")
    if given is None and found is None:
        return IMAGE_TOKEN_IDS[llm_architecture(checkpoint.config)], False
    token_id = found if given is None else given
    if not 0 <= token_id < rows:
        raise ValueError(f"llm_config.vocab_size: got {rows}, expected more than {token_id}, the id of {IMAGE_CONTEXT}")
    return token_id, True


def _dtype(checkpoint: ChatCheckpoint) -> str:
    """Of the embeddings, whatever the configuration says: it is what the weights are written in."""
    dtypes = {key: info.dtype for key, info in checkpoint.tensors().items()}
    embeddings = next(
        rule.source for rule in chat_layout(checkpoint.config) if rule.source.startswith("language_model")
    )
    return str(dtypes[embeddings]).removeprefix("torch.")
