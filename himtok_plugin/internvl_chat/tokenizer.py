"""The text tokenizer of an InternVL chat model as a fast one that gives the same ids.

Contract: `fast_tokenizer(folder)` reads InternLM2's `tokenizer.model` (SentencePiece) or Qwen2's `vocab.json` and
`merges.txt`, and every added token at the id that it has there. A folder with neither may hold a fast tokenizer
already, `tokenizer.json`, whose added tokens get the same flags as those of the others (token_files.py). What the
processor asks for (`<img>`, `</img>`, `<IMG_CONTEXT>`) it finds by the names it asks for. Does not know images and
models.

The authors read text piece by piece between added tokens, as a fast tokenizer does whose added tokens are not
normalized.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from .source import read_json_object
from .token_files import (
    FAST_FILE,
    MERGES_FILE,
    NAMED_TOKENS,
    SENTENCEPIECE_FILE,
    SETTINGS_FILE,
    VOCABULARY_FILE,
    added_tokens,
    check_id,
    named_tokens,
    read_settings,
)

IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
# What stands for a video in a text: the first of these that there is, since it should have no other use. `<quad>` is
# InternVL's, and no prompt uses it; `<img>`, which every InternVL chat model has, is written before images as well.
VIDEO_TOKENS = ("<video>", "<|video_pad|>", "<quad>", IMAGE_START)
SPACE = "▁"  # how SentencePiece writes a space
UNIGRAM, BPE = 1, 2  # SentencePiece's model types
NORMAL, USER_DEFINED = 1, 4  # SentencePiece's piece types


def fast_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read the tokenizer in a folder.

    Raises:
        ValueError: no tokenizer there, files that are broken or contradict each other, or no token for images.
    """
    settings, named = read_settings(folder), named_tokens(folder)
    added = added_tokens(folder)
    if (folder / SENTENCEPIECE_FILE).is_file():
        tokenizer, own = _from_sentencepiece(folder / SENTENCEPIECE_FILE, added)
        for name, token in zip(NAMED_TOKENS, own, strict=False):
            named.setdefault(name, token)
        adds_bos = settings.get("add_bos_token", True)
    elif (folder / VOCABULARY_FILE).is_file() and (folder / MERGES_FILE).is_file():
        tokenizer, adds_bos = _from_qwen2(folder, added), False
    elif (folder / FAST_FILE).is_file():
        tokenizer, adds_bos = _from_fast(folder / FAST_FILE), False  # it says itself what texts begin with
    else:
        raise ValueError(
            f"{folder}: no text tokenizer, expected {SENTENCEPIECE_FILE}, or {VOCABULARY_FILE} and {MERGES_FILE}, or "
            f"{FAST_FILE} (--skip_tokenizer converts the rest)"
        )
    _add(tokenizer, added, folder)
    lacking = [token for token in (IMAGE_START, IMAGE_END, IMAGE_CONTEXT) if tokenizer.token_to_id(token) is None]
    if lacking:
        raise ValueError(f"{folder}: text tokenizer lacks {lacking}, expected that of an InternVL chat model")
    if adds_bos and named.get("bos_token"):
        bos = named["bos_token"]
        if tokenizer.token_to_id(bos) is None:
            raise ValueError(f"{folder}: bos_token: got {bos!r}, expected a token of its text tokenizer")
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    video = next(token for token in VIDEO_TOKENS if tokenizer.token_to_id(token) is not None)
    longest = settings.get("model_max_length")
    if not (longest is None or isinstance(longest, (int, float))):
        raise ValueError(f"{folder / SETTINGS_FILE}: model_max_length: got {longest!r}, expected a number")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        extra_special_tokens={
            "start_image_token": IMAGE_START,
            "end_image_token": IMAGE_END,
            "context_image_token": IMAGE_CONTEXT,
            "video_token": video,
        },
        model_max_length=longest or int(1e30),
        clean_up_tokenization_spaces=False,
        **named,
    )


def begins_with_bos(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether texts begin with the token that says so, as InternLM2's do."""
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """What the tokenizers library says is wrong with a file, as an error that names the file."""
    try:
        yield
    except Exception as error:  # it has no class for this
        raise ValueError(f"{file}: no text tokenizer ({error})") from error


def _vocabulary_with(vocabulary: dict[str, int], added: Mapping[int, AddedToken], source: Path) -> dict[str, int]:
    """The vocabulary with the added tokens at their ids, where they may take the place of unused pieces."""
    for token in added.values():
        elsewhere = vocabulary.get(token.content)
        if elsewhere is not None and added.get(elsewhere) is not token:
            raise ValueError(f"{source}: {token.content!r} has id {elsewhere} there, expected that of the added token")
    replaced = {text: token_id for text, token_id in vocabulary.items() if token_id not in added}
    return replaced | {token.content: token_id for token_id, token in added.items()}


def _add(tokenizer: Tokenizer, added: Mapping[int, AddedToken], folder: Path) -> None:
    tokenizer.add_tokens([token for _, token in sorted(added.items())])
    misplaced = {
        token.content: (tokenizer.token_to_id(token.content), token_id)
        for token_id, token in added.items()
        if tokenizer.token_to_id(token.content) != token_id
    }
    if misplaced:
        raise ValueError(f"{folder}: added tokens would get other ids (got, expected): {misplaced}")


def _from_qwen2(folder: Path, added: Mapping[int, AddedToken]) -> Tokenizer:
    from transformers import Qwen2Tokenizer

    file = folder / VOCABULARY_FILE
    stated = {text: check_id(token_id, file, text) for text, token_id in read_json_object(file).items()}
    vocabulary = _vocabulary_with(stated, added, folder)
    merges = _read_merges(folder / MERGES_FILE, vocabulary)
    # Its model is taken out, since this class would add tokens of its own.
    template = Qwen2Tokenizer().backend_tokenizer
    with _reading(file):
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = template.normalizer
    tokenizer.pre_tokenizer = template.pre_tokenizer
    tokenizer.decoder = template.decoder
    return tokenizer


def _read_merges(file: Path, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: no text ({error})") from error
    numbered = [(i, line) for i, line in enumerate(lines, 1) if line and not line.startswith("#version")]
    return [_merge(line.split(" "), vocabulary, f"{file}: line {i}") for i, line in numbered]


def _merge(pieces: Any, vocabulary: Mapping[str, int], where: str) -> tuple[str, str]:
    """Two pieces that become one. Others are refused here, because the library panics on some of them."""
    texts = isinstance(pieces, list) and all(isinstance(piece, str) for piece in pieces)
    if not texts or len(pieces) != 2 or any(piece not in vocabulary for piece in (*pieces, "".join(pieces))):
        raise ValueError(f"{where}: got {pieces!r}, expected two pieces of the vocabulary that make a third")
    return pieces[0], pieces[1]


def _from_fast(file: Path) -> Tokenizer:
    """Without its added tokens, which the caller adds with the flags that answers need."""
    content = read_json_object(file) | {"added_tokens": []}
    model = content.get("model")
    if isinstance(model, dict) and isinstance(model.get("vocab"), dict) and isinstance(model.get("merges"), list):
        for i, pair in enumerate(model["merges"]):
            _merge(pair.split(" ") if isinstance(pair, str) else pair, model["vocab"], f"{file}: model.merges[{i}]")
    with _reading(file):
        return Tokenizer.from_str(json.dumps(content))


def _from_sentencepiece(file: Path, added: Mapping[int, AddedToken]) -> tuple[Tokenizer, tuple[str, str, str]]:
    """The tokenizer, and its own tokens for beginning, end and unknown."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(file.read_bytes())
    except Exception as error:  # of protobuf, whose class depends on its implementation
        raise ValueError(f"{file}: no SentencePiece model ({error})") from error
    pieces, trained = list(proto.pieces), proto.trainer_spec
    if not 0 <= trained.unk_id < len(pieces):
        raise ValueError(f"{file}: no SentencePiece model (none of {len(pieces)} pieces stands for the unknown)")
    tokenizer = Tokenizer(_model_of(proto, added, file))
    spec = proto.normalizer_spec
    with _reading(file):
        steps = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    undo = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*undo, *([decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else [])])
    # Looked for after normalizing, which would put the prefix before them as well.
    taken = {token.content for token in added.values()}
    words = [
        AddedToken(piece.piece, special=False, normalized=not spec.add_dummy_prefix)
        for i, piece in enumerate(pieces)
        if piece.type == USER_DEFINED and i not in added and piece.piece not in taken
    ]
    tokenizer.add_tokens(words)
    own = tuple(
        pieces[i].piece if 0 <= i < len(pieces) else "" for i in (trained.bos_id, trained.eos_id, trained.unk_id)
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in own if text])
    return tokenizer, own


def _model_of(proto: Any, added: Mapping[int, AddedToken], file: Path) -> models.Model:
    """Pieces and added tokens, by the algorithm that the SentencePiece model was trained with."""
    from transformers.convert_slow_tokenizer import generate_merges

    pieces, trained = list(proto.pieces), proto.trainer_spec
    vocabulary = {piece.piece: i for i, piece in enumerate(pieces)}
    with_added = _vocabulary_with(vocabulary, added, file)
    if trained.model_type == BPE:
        scores = {piece.piece: piece.score for piece in pieces if piece.type == NORMAL}
        rest = vocabulary.keys() - scores.keys()
        with _reading(file):
            return models.BPE(
                vocab=with_added,
                merges=generate_merges(vocabulary, scores, rest),
                unk_token=pieces[trained.unk_id].piece,
                fuse_unk=True,
                byte_fallback=trained.byte_fallback,
            )
    if trained.model_type == UNIGRAM:
        scores = {piece.piece: piece.score for piece in pieces}
        by_id = {i: text for text, i in with_added.items()}
        gaps = sorted(set(range(max(by_id))) - by_id.keys())
        if gaps:
            raise ValueError(f"{file}: no tokens with ids {gaps}, expected no gaps")
        scored = [(by_id[i], scores.get(by_id[i], 0.0)) for i in range(len(by_id))]
        with _reading(file):
            return models.Unigram(scored, unk_id=trained.unk_id, byte_fallback=trained.byte_fallback)
    raise ValueError(f"{file}: model type {trained.model_type}, expected BPE ({BPE}) or unigram ({UNIGRAM})")
