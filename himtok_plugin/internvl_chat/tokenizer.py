"""The text tokenizer of an InternVL chat model as a fast one that gives the same ids.

Contract: `fast_tokenizer(folder)` reads InternLM2's `tokenizer.model` (SentencePiece) or Qwen2's `vocab.json` and
`merges.txt`, and every added token at the id that it has there. What the processor asks for (`<img>`, `</img>`,
`<IMG_CONTEXT>`) it finds by the names it asks for. Mask, box and ref tokens become *non-special*, because servers strip
special tokens from their answers. Does not know images and models.

The authors read text piece by piece between added tokens, as a fast tokenizer does whose added tokens are not
normalized.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from ..mask_text import MASK_TOKEN_PREFIX
from .source import read_json

IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
# What stands for a video in a text; it needs one token of its own. `<quad>` is InternVL's, and no prompt uses it.
VIDEO_TOKENS = ("<video>", "<|video_pad|>", "<quad>", IMAGE_START)
ANSWER_TOKENS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
SENTENCEPIECE_FILE, VOCABULARY_FILE, MERGES_FILE, FAST_FILE = (
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
)
SPACE = "▁"  # how SentencePiece writes a space
UNIGRAM, BPE = 1, 2  # SentencePiece's model types
NORMAL, USER_DEFINED = 1, 4  # SentencePiece's piece types


def fast_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read the tokenizer in a folder.

    Raises:
        ValueError: no tokenizer there, contradicting files, or no token for images.
    """
    settings = _optional_json(folder / "tokenizer_config.json")
    named = _named_tokens(folder, settings)
    added = added_tokens(folder)
    if (folder / SENTENCEPIECE_FILE).is_file():
        tokenizer, own = _from_sentencepiece(folder / SENTENCEPIECE_FILE, added)
        for name, token in zip(NAMED_TOKENS, own, strict=False):
            named.setdefault(name, token)
        adds_bos = settings.get("add_bos_token", True)
    elif (folder / VOCABULARY_FILE).is_file() and (folder / MERGES_FILE).is_file():
        tokenizer, adds_bos = _from_qwen2(folder, added), False
    elif (folder / FAST_FILE).is_file():
        tokenizer, adds_bos = Tokenizer.from_file(str(folder / FAST_FILE)), False
    else:
        raise ValueError(
            f"{folder}: no text tokenizer, expected {SENTENCEPIECE_FILE}, or {VOCABULARY_FILE} and {MERGES_FILE} "
            "(--skip_tokenizer converts the rest)"
        )
    _add(tokenizer, added, folder)
    lacking = [token for token in (IMAGE_START, IMAGE_END, IMAGE_CONTEXT) if tokenizer.token_to_id(token) is None]
    if lacking:
        raise ValueError(f"{folder}: text tokenizer lacks {lacking}, expected that of an InternVL chat model")
    if adds_bos and named.get("bos_token"):
        bos = named["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    video = next(token for token in VIDEO_TOKENS if tokenizer.token_to_id(token) is not None)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        extra_special_tokens={
            "start_image_token": IMAGE_START,
            "end_image_token": IMAGE_END,
            "context_image_token": IMAGE_CONTEXT,
            "video_token": video,
        },
        model_max_length=settings.get("model_max_length") or int(1e30),
        clean_up_tokenization_spaces=False,
        **named,
    )


def begins_with_bos(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether texts begin with the token that says so, as InternLM2's do."""
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id


def added_tokens(folder: Path) -> dict[int, AddedToken]:
    """Tokens beside the model of text: id -> token.

    Raises:
        ValueError: two files or entries contradict each other.
    """
    settings = _optional_json(folder / "tokenizer_config.json")
    special = _optional_json(folder / "special_tokens_map.json")
    names = {_text(token) for token in special.get("additional_special_tokens") or []}
    names |= {_text(special[name]) for name in NAMED_TOKENS if special.get(name)}
    found: dict[int, AddedToken] = {}
    for text, token_id in _optional_json(folder / "added_tokens.json").items():
        found[int(token_id)] = _token(text, {"special": text in names})
    for token_id, fields in (settings.get("added_tokens_decoder") or {}).items():
        known = found.get(int(token_id))
        if known is not None and known.content != fields["content"]:
            raise ValueError(
                f"{folder}: id {token_id} is {known.content!r} in added_tokens.json and {fields['content']!r} in "
                "tokenizer_config.json, expected the same"
            )
        found[int(token_id)] = _token(fields["content"], fields)
    texts = [token.content for token in found.values()]
    twice = sorted({text for text in texts if texts.count(text) > 1}) if len(set(texts)) < len(texts) else []
    if twice:
        raise ValueError(f"{folder}: added tokens {twice} have several ids, expected one each")
    return found


def _token(text: str, fields: Mapping[str, Any]) -> AddedToken:
    answers = text.startswith(MASK_TOKEN_PREFIX) or text in ANSWER_TOKENS
    return AddedToken(
        text,
        special=not answers and bool(fields.get("special")),
        lstrip=bool(fields.get("lstrip")),
        rstrip=bool(fields.get("rstrip")),
        single_word=bool(fields.get("single_word")),
        normalized=False,
    )


def _named_tokens(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    special = _optional_json(folder / "special_tokens_map.json")
    found = {name: settings.get(name) or special.get(name) for name in NAMED_TOKENS}
    return {name: _text(token) for name, token in found.items() if token}


def _text(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


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

    vocabulary = {text: int(token_id) for text, token_id in read_json(folder / VOCABULARY_FILE).items()}
    lines = (folder / MERGES_FILE).read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    # Its model is taken out, since this class would add tokens of its own.
    template = Qwen2Tokenizer().backend_tokenizer
    tokenizer = Tokenizer(models.BPE(vocab=_vocabulary_with(vocabulary, added, folder), merges=merges))
    tokenizer.normalizer = template.normalizer
    tokenizer.pre_tokenizer = template.pre_tokenizer
    tokenizer.decoder = template.decoder
    return tokenizer


def _from_sentencepiece(file: Path, added: Mapping[int, AddedToken]) -> tuple[Tokenizer, tuple[str, str, str]]:
    """The tokenizer, and its own tokens for beginning, end and unknown."""
    from sentencepiece import sentencepiece_model_pb2
    from transformers.convert_slow_tokenizer import generate_merges

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(file.read_bytes())
    except Exception as error:  # of protobuf, whose class depends on its implementation
        raise ValueError(f"{file}: no SentencePiece model ({error})") from error
    pieces, trained = list(proto.pieces), proto.trainer_spec
    vocabulary = {piece.piece: i for i, piece in enumerate(pieces)}
    unknown = pieces[trained.unk_id].piece
    if trained.model_type == BPE:
        scores = {piece.piece: piece.score for piece in pieces if piece.type == NORMAL}
        rest = vocabulary.keys() - scores.keys()
        model = models.BPE(
            vocab=_vocabulary_with(vocabulary, added, file),
            merges=generate_merges(vocabulary, scores, rest),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=trained.byte_fallback,
        )
    elif trained.model_type == UNIGRAM:
        scores = {piece.piece: piece.score for piece in pieces}
        by_id = {i: text for text, i in _vocabulary_with(vocabulary, added, file).items()}
        gaps = sorted(set(range(max(by_id))) - by_id.keys())
        if gaps:
            raise ValueError(f"{file}: no tokens with ids {gaps}, expected no gaps")
        scored = [(by_id[i], scores.get(by_id[i], 0.0)) for i in range(len(by_id))]
        model = models.Unigram(scored, unk_id=trained.unk_id, byte_fallback=trained.byte_fallback)
    else:
        raise ValueError(f"{file}: model type {trained.model_type}, expected BPE ({BPE}) or unigram ({UNIGRAM})")
    tokenizer = Tokenizer(model)
    spec = proto.normalizer_spec
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
    own = tuple(pieces[i].piece if i >= 0 else "" for i in (trained.bos_id, trained.eos_id, trained.unk_id))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in own if text])
    return tokenizer, own
