"""Converts the text tokenizer of an InternVL chat model to a fast tokenizer that returns the same ids.

`build_fast_tokenizer(folder)` reads InternLM2's `tokenizer.model` (SentencePiece), Qwen2's `vocab.json` and
`merges.txt`, or a fast tokenizer, `tokenizer.json`. Added tokens keep their ids and get the flags of
tokenizer_files.py. `<img>`, `</img>` and `<IMG_CONTEXT>` get the attribute names that transformers' processor reads.

The slow tokenizers split text at added tokens first and tokenize what is between them. A fast tokenizer does the same
if its added tokens are not normalized.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from himtok_plugin.checkpoints.json_files import read_json_object

from .tokenizer_files import (
    FAST_FILE,
    MERGES_FILE,
    NAMED_TOKENS,
    SENTENCEPIECE_FILE,
    SETTINGS_FILE,
    VOCABULARY_FILE,
    parse_token_id,
    read_added_tokens,
    read_named_tokens,
    read_tokenizer_settings,
)

IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
# The placeholder of a video: the first of these tokens that the vocabulary has. It should have no other use: no prompt
# contains InternVL's `<quad>`; `<img>`, which every InternVL chat model has, also stands before images.
VIDEO_TOKENS = ("<video>", "<|video_pad|>", "<quad>", IMAGE_START)
SPACE = "▁"  # how SentencePiece writes a space
UNIGRAM, BPE = 1, 2  # SentencePiece's model types
NORMAL, USER_DEFINED = 1, 4  # SentencePiece's piece types


def build_fast_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Build the fast tokenizer from the files in a folder.

    Raises:
        ValueError: the folder does not hold a tokenizer, its files are invalid or contradict each other, or the image
            tokens are missing.
    """
    settings, named = read_tokenizer_settings(folder), read_named_tokens(folder)
    added = read_added_tokens(folder)
    if (folder / SENTENCEPIECE_FILE).is_file():
        tokenizer, own = _from_sentencepiece(folder / SENTENCEPIECE_FILE, added)
        for name, token in zip(NAMED_TOKENS, own, strict=False):
            named.setdefault(name, token)
        adds_bos = settings.get("add_bos_token", True)
    elif (folder / VOCABULARY_FILE).is_file() and (folder / MERGES_FILE).is_file():
        tokenizer, adds_bos = _from_qwen2(folder, added), False
    elif (folder / FAST_FILE).is_file():
        tokenizer, adds_bos = _from_fast(folder / FAST_FILE), False  # its own post-processor adds it
    else:
        raise ValueError(
            f"{folder}: no text tokenizer, expected {SENTENCEPIECE_FILE}, or {VOCABULARY_FILE} and {MERGES_FILE}, or "
            f"{FAST_FILE} (--skip_tokenizer converts the rest)"
        )
    _add_tokens(tokenizer, added, folder)
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


def adds_bos_token(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Return whether the tokenizer puts its BOS token before a text, as InternLM2's does."""
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id


@contextmanager
def _naming_errors(file: Path) -> Iterator[None]:
    """Raise the errors of the tokenizers library as ValueErrors that name the file."""
    try:
        yield
    except Exception as error:  # the library raises plain exceptions
        raise ValueError(f"{file}: not a text tokenizer ({error})") from error


def _merge_vocabulary(vocabulary: dict[str, int], added: Mapping[int, AddedToken], source: Path) -> dict[str, int]:
    """Put the added tokens into the vocabulary, at ids where they may replace unused pieces."""
    for token in added.values():
        elsewhere = vocabulary.get(token.content)
        if elsewhere is not None and added.get(elsewhere) is not token:
            raise ValueError(f"{source}: {token.content!r} has id {elsewhere} there, expected that of the added token")
    replaced = {text: token_id for text, token_id in vocabulary.items() if token_id not in added}
    return replaced | {token.content: token_id for token_id, token in added.items()}


def _add_tokens(tokenizer: Tokenizer, added: Mapping[int, AddedToken], folder: Path) -> None:
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
    trained = {text: parse_token_id(token_id, file, text) for text, token_id in read_json_object(file).items()}
    vocabulary = _merge_vocabulary(trained, added, folder)
    merges = _read_merges(folder / MERGES_FILE, vocabulary)
    # Only its normalizer, pre-tokenizer and decoder are used: the class itself would add tokens of its own.
    template = Qwen2Tokenizer().backend_tokenizer
    with _naming_errors(file):
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = template.normalizer
    tokenizer.pre_tokenizer = template.pre_tokenizer
    tokenizer.decoder = template.decoder
    return tokenizer


def _read_merges(file: Path, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not a text file ({error})") from error
    numbered = [(i, line) for i, line in enumerate(lines, 1) if line and not line.startswith("#version")]
    return [_merge(line.split(" "), vocabulary, f"{file}: line {i}") for i, line in numbered]


def _merge(pieces: Any, vocabulary: Mapping[str, int], where: str) -> tuple[str, str]:
    """Return the two pieces of a merge. Invalid ones are rejected here, because the library panics on some of them."""
    texts = isinstance(pieces, list) and all(isinstance(piece, str) for piece in pieces)
    if not texts or len(pieces) != 2 or any(piece not in vocabulary for piece in (*pieces, "".join(pieces))):
        raise ValueError(f"{where}: got {pieces!r}, expected two pieces of the vocabulary that make a third")
    return pieces[0], pieces[1]


def _from_fast(file: Path) -> Tokenizer:
    """Read tokenizer.json without its added tokens, which the caller adds with the flags that answers need."""
    content = read_json_object(file) | {"added_tokens": []}
    model = content.get("model")
    if isinstance(model, dict) and isinstance(model.get("vocab"), dict) and isinstance(model.get("merges"), list):
        for i, pair in enumerate(model["merges"]):
            _merge(pair.split(" ") if isinstance(pair, str) else pair, model["vocab"], f"{file}: model.merges[{i}]")
    with _naming_errors(file):
        return Tokenizer.from_str(json.dumps(content))


def _from_sentencepiece(file: Path, added: Mapping[int, AddedToken]) -> tuple[Tokenizer, tuple[str, str, str]]:
    """Read a SentencePiece model; return the tokenizer and the texts of its BOS, EOS and unknown tokens."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # protobuf generates it
    try:
        proto.ParseFromString(file.read_bytes())
    except Exception as error:  # the class depends on the implementation of protobuf
        raise ValueError(f"{file}: not a SentencePiece model ({error})") from error
    pieces, trained = list(proto.pieces), proto.trainer_spec
    if not 0 <= trained.unk_id < len(pieces):
        raise ValueError(f"{file}: not a SentencePiece model (none of {len(pieces)} pieces is the unknown token)")
    tokenizer = Tokenizer(_build_model(proto, added, file))
    spec = proto.normalizer_spec
    with _naming_errors(file):
        steps: list[normalizers.Normalizer] = []
        if spec.precompiled_charsmap:
            steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    undo = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*undo, *([decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else [])])
    # With a prefix, they are matched in the text before normalization, which would put the prefix before them as well.
    taken = {token.content for token in added.values()}
    user_defined = [
        AddedToken(piece.piece, special=False, normalized=not spec.add_dummy_prefix)
        for i, piece in enumerate(pieces)
        if piece.type == USER_DEFINED and i not in added and piece.piece not in taken
    ]
    tokenizer.add_tokens(user_defined)
    bos, eos, unknown = (
        pieces[i].piece if 0 <= i < len(pieces) else "" for i in (trained.bos_id, trained.eos_id, trained.unk_id)
    )
    special = [AddedToken(text, special=True, normalized=False) for text in (bos, eos, unknown) if text]
    tokenizer.add_special_tokens(special)
    return tokenizer, (bos, eos, unknown)


def _build_model(proto: Any, added: Mapping[int, AddedToken], file: Path) -> models.Model:
    """Build the model of pieces and added tokens with the algorithm that the SentencePiece model was trained with."""
    from transformers.convert_slow_tokenizer import generate_merges

    pieces, trained = list(proto.pieces), proto.trainer_spec
    vocabulary = {piece.piece: i for i, piece in enumerate(pieces)}
    with_added = _merge_vocabulary(vocabulary, added, file)
    if trained.model_type == BPE:
        scores = {piece.piece: piece.score for piece in pieces if piece.type == NORMAL}
        rest = vocabulary.keys() - scores.keys()
        with _naming_errors(file):
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
            raise ValueError(f"{file}: ids {gaps} have no token, expected ids without gaps")
        scored = [(by_id[i], scores.get(by_id[i], 0.0)) for i in range(len(by_id))]
        with _naming_errors(file):
            return models.Unigram(scored, unk_id=trained.unk_id, byte_fallback=trained.byte_fallback)
    raise ValueError(f"{file}: model type {trained.model_type}, expected BPE ({BPE}) or unigram ({UNIGRAM})")
