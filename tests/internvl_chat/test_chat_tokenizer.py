"""The fast tokenizer returns the same ids as the slow one, for text and for every added token."""

import json
import random

import pytest
import sentencepiece
from chat_models import (
    CHAT_TOKENS,
    CODES,
    SYSTEM,
    TEXTS,
    UNUSED,
    chat_model,
    internlm2_files,
    qwen2_files,
    rows_needed,
    train_sentencepiece,
    with_tokenizer,
)
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, Qwen2Tokenizer

from himtok_plugin.internvl_chat.fast_tokenizer import build_fast_tokenizer
from himtok_plugin.lmm.vocabulary import MaskVocabulary
from himtok_plugin.mask_text import codes_to_text

PIECES_OF_TEXT = [
    *"ab cdesz .,:;!?0189\n\t-_()[]{}'\"éßøñ你好书生万象🙂🏳️‍🌈\u200b",
    "  ",
    "   ",
    " the",
    "Segment",
    "▁",
    "<0x41>",
    "<s",
    "<|im_",
    "<|mt_",
    "[UNUSED_2]",
    "box",
    "mask appears",
]


def random_texts(count, seed=0, added=()):
    rng = random.Random(seed)
    for _ in range(count):
        yield "".join(rng.choice([*PIECES_OF_TEXT, *added]) for _ in range(rng.randrange(1, 30)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    def train(**options):
        return train_sentencepiece(tmp_path_factory.mktemp("sp"), **options)

    return train


def slow_ids(model: bytes, added: dict[str, int], text: str) -> list[int]:
    """Tokenize as the slow tokenizer does: split at added tokens, the longest first, then tokenize what is between."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids, start = [], 0
    order = sorted(added, key=len, reverse=True)
    i = 0
    while i < len(text):
        token = next((token for token in order if text.startswith(token, i)), None)
        if token is None:
            i += 1
            continue
        ids += pieces.encode(text[start:i])
        ids.append(added[token])
        i = start = i + len(token)
    return ids + pieces.encode(text[start:])


STYLES = {
    "internlm2": {},
    "with a prefix": {"add_dummy_prefix": True},
    "sentencepiece's defaults": {
        "add_dummy_prefix": True,
        "remove_extra_whitespaces": True,
        "normalization_rule_name": "nmt_nfkc",
    },
    "without bytes": {"byte_fallback": False},
    "unigram": {"model_type": "unigram", "add_dummy_prefix": True},
}


@pytest.mark.parametrize("style", STYLES)
def test_ids_equal_those_of_sentencepiece(trained, tmp_path, style):
    model = trained(**STYLES[style])
    files = internlm2_files(model)
    fast = build_fast_tokenizer(with_tokenizer(files).write(tmp_path / "source"))
    added = {**files["added_tokens.json"], "<unk>": 0, "<s>": 1, "</s>": 2}
    samples = [*TEXTS, *random_texts(300), *random_texts(300, seed=1, added=[*CHAT_TOKENS, "<img>", "<ref>", "<s>"])]
    samples += [f"<|im_start|>user\n<ref>it</ref>{codes_to_text([3, 11, 0])}.<|im_end|>", "", " ", "\n"]
    if style == "sentencepiece's defaults":
        # Its Unicode tables and those of the tokenizers library part ways on joined emoji.
        samples = [text for text in samples if "\u200d" not in text and "\u200b" not in text]
    if style == "unigram":  # the library takes the name of a byte for the byte
        samples = [text for text in samples if "<0x" not in text]
    for text in samples:
        assert fast(text, add_special_tokens=False).input_ids == slow_ids(model, added, text), repr(text)
        assert fast(text).input_ids == [1, *slow_ids(model, added, text)]


@pytest.mark.parametrize("new_style", [True, False])
def test_added_tokens_keep_their_ids_and_answers_keep_mask_tokens(himtok, trained, tmp_path, new_style):
    files = internlm2_files(trained(), new_style)
    source = with_tokenizer(files).write(tmp_path / "source")
    status, _, err = himtok("convert", source, tmp_path / "out")
    assert status == 0, err
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.is_fast
    for token, token_id in files["added_tokens.json"].items():
        assert tokenizer.convert_tokens_to_ids(token) == token_id
        assert tokenizer(token, add_special_tokens=False).input_ids == [token_id]
    assert len(tokenizer) == rows_needed(files)
    assert UNUSED[0] not in tokenizer.get_vocab()
    answer = f"<ref>the dog</ref> at {codes_to_text([3, 11])}, <box>[[1, 2, 3, 4]]</box><|im_end|>"
    ids = tokenizer(answer, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == answer.removesuffix("<|im_end|>")
    assert MaskVocabulary.of(tokenizer, CODES).start_id == files["added_tokens.json"]["<|mt_start|>"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.model_max_length == 8192
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.image_token_id == files["added_tokens.json"]["<IMG_CONTEXT>"]
    assert processor.tokenizer(TEXTS[0]).input_ids == tokenizer(TEXTS[0]).input_ids


def test_qwen2_keeps_its_ids_and_adds_no_bos_token(himtok, tmp_path):
    files = qwen2_files()
    chat = chat_model(texts=files, llm="Qwen2ForCausalLM", vocab_size=rows_needed(files) + 20)
    status, _, err = himtok("convert", chat.write(tmp_path / "source"), tmp_path / "out")
    assert status == 0, err
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    merges = [tuple(line.split()) for line in files["merges.txt"].splitlines()[1:]]
    plain = Qwen2Tokenizer(vocab=dict(files["vocab.json"]), merges=merges)
    for text in [text for text in [*TEXTS, *random_texts(200)] if "<ref>" not in text]:
        assert tokenizer(text).input_ids == plain(text).input_ids, repr(text)
        assert tokenizer.decode(tokenizer(text).input_ids) == plain.decode(plain(text).input_ids)
    for token, token_id in files["added_tokens.json"].items():
        assert tokenizer(f"a{token}b").input_ids[1] == token_id
    assert not tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False).startswith("<|end")


def test_a_fast_tokenizer_alone_keeps_its_ids_and_answers_keep_mask_tokens(himtok, tmp_path):
    files = qwen2_files()
    slow = chat_model(texts=files, llm="Qwen2ForCausalLM", vocab_size=rows_needed(files))
    assert himtok("convert", slow.write(tmp_path / "slow"), tmp_path / "one")[0] == 0
    content = json.loads((tmp_path / "one" / "tokenizer.json").read_text())
    for token in content["added_tokens"]:  # as transformers writes them where nobody thinks of servers
        token |= {"special": True, "normalized": False}
    names = {name: files["tokenizer_config.json"][name] for name in ("eos_token", "pad_token")}
    fast = chat_model(
        texts={"tokenizer.json": content, "tokenizer_config.json": names},
        llm="Qwen2ForCausalLM",
        vocab_size=rows_needed(files),
    )
    status, _, err = himtok("convert", fast.write(tmp_path / "fast"), tmp_path / "other")
    assert status == 0, err
    expected, found = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("one", "other"))
    assert found.get_vocab() == expected.get_vocab() and found.eos_token_id == expected.eos_token_id
    answer = f"<ref>the dog</ref> at {codes_to_text([3, 11])}, <box>[[1, 2]]</box><|im_end|>"
    for text in [*TEXTS, *random_texts(50), answer]:
        assert found(text).input_ids == expected(text).input_ids, repr(text)
    assert found.decode(found(answer).input_ids, skip_special_tokens=True) == answer.removesuffix("<|im_end|>")


def test_spare_token_embeddings_are_kept(himtok, trained, tmp_path):
    files = internlm2_files(trained())
    chat = chat_model(texts=files, vocab_size=rows_needed(files) + 30)
    assert himtok("convert", chat.write(tmp_path / "source"), tmp_path / "out")[0] == 0
    assert AutoConfig.from_pretrained(tmp_path / "out").text_config.vocab_size == rows_needed(files) + 30


def test_conversations_are_formatted_as_by_the_authors(himtok, trained, tmp_path):
    files = internlm2_files(trained())
    assert himtok("convert", with_tokenizer(files).write(tmp_path / "source"), tmp_path / "out")[0] == 0
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    question = [{"type": "image"}, {"type": "text", "text": "Segment <ref>road</ref>."}]
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "Here."},
        {"role": "user", "content": "Again."},
    ]
    written = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert written == (
        f"<s><|im_start|>system\n{SYSTEM}<|im_end|>\n"
        "<|im_start|>user\n<IMG_CONTEXT>\nSegment <ref>road</ref>.<|im_end|>\n"
        "<|im_start|>assistant\nHere.<|im_end|>\n"
        "<|im_start|>user\nAgain.<|im_end|>\n<|im_start|>assistant\n"
    )
    own = processor.apply_chat_template([{"role": "system", "content": "Be brief."}, messages[-1]])
    assert own == "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nAgain.<|im_end|>\n"
    ids = processor.tokenizer.apply_chat_template([messages[-1]], tokenize=True)["input_ids"]
    assert ids.count(1) == 1 and ids[0] == 1
