"""mask_text.py: legal masks round-trip, malformed ones are marked, and no text whatever crashes."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from himtok_plugin.mask_text import (
    MaskSpan,
    answer_regex,
    codes_to_text,
    count_placeholders,
    mask_regex,
    mask_token,
    mask_tokens,
    reference_placeholder_to_mask,
    text_to_codes,
)

START, END = "<|mt_start|>", "<|mt_end|>"
PIECES = [START, END, "<|mt_", "|>", "<", "|", "m", "<|mt_0|>", "<|mt_7|>", "<|mt_99|>", " ", "\n", "foreign", "<mask>"]
# Latin, Greek, Cyrillic, Arabic, Hebrew, Devanagari, Thai, Han, Hiragana, Hangul, Ethiopic, emoji that are several
# characters; and what looks like a token without being one.
SCRIPTS = [
    "the cat ",
    "η γάτα",
    "кошка",
    "القطة ٧",
    "החתול",
    "बिल्ली ७",
    "แมว",
    "猫在这里",
    "ねこ",
    "고양이",
    "ድመቷ",
    "👩🏽‍🌾",
]
LOOKALIKES = ["＜|mt_start|＞", "<|mt_٣|>", "<|MT_1|>", "<|mt_ 1|>", "<|mt_start|", "\u202e<|mt_2|>", "<|mt_2|>\u0301"]
texts = st.lists(
    st.one_of(st.sampled_from(PIECES), st.sampled_from(SCRIPTS), st.sampled_from(LOOKALIKES), st.text(max_size=4)),
    max_size=30,
).map("".join)


def found(text, **kwargs):
    return [(span.codes, span.complete) for span in text_to_codes(text, **kwargs)]


def test_text_of_codes_as_in_the_contract():
    assert codes_to_text([7, 3]) == "<|mt_start|><|mt_7|><|mt_3|><|mt_end|>"
    assert codes_to_text(np.array([7, 3])) == codes_to_text((7, 3))


def test_vocabulary_is_start_end_codes():
    assert mask_tokens(2) == [START, END, "<|mt_0|>", "<|mt_1|>"]


@pytest.mark.parametrize("codes", [[], [0] * 33, [-1], [16], [1.0], ["1"], [True], [None], 5, None, np.array([0.5])])
def test_illegal_codes_are_refused(codes):
    with pytest.raises(ValueError, match="codes"):
        codes_to_text(codes, codebook_size=16)


@given(st.lists(st.lists(st.integers(0, 1023), min_size=1, max_size=32), max_size=4), st.text(alphabet="ab <|é語\n"))
def test_legal_masks_round_trip(masks, between):
    text = between.join(["", *map(codes_to_text, masks), ""])
    spans = text_to_codes(text, codebook_size=1024)
    assert [span.codes for span in spans] == masks
    assert all(span.complete and text[span.start : span.end] == codes_to_text(span.codes) for span in spans)


@given(texts)
def test_no_text_crashes_and_spans_are_ordered_and_legal(text):
    position = 0
    for span in text_to_codes(text, codebook_size=50, max_tokens=4):
        assert position <= span.start < span.end <= len(text)
        assert len(span.codes) <= 4 and all(0 <= code < 50 for code in span.codes)
        if span.complete:
            assert re.sub(r"\s", "", text[span.start : span.end]) == codes_to_text(span.codes)
        position = span.end


@given(texts)
def test_answer_regex_accepts_exactly_the_texts_without_stray_tokens(text):
    legal = "<|mt_" not in re.sub(mask_regex(50, 4), "\0", text)
    assert bool(re.fullmatch(answer_regex(50, 4), text)) == legal
    if legal:
        assert all(span.complete for span in text_to_codes(text, 50, 4))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no mask", []),
        (f"{START}<|mt_1|><|mt_2|>", [([1, 2], False)]),
        (f"{START}<|mt_1|> and so on", [([1], False)]),
        (f"{START}<|mt_1|>{START}<|mt_2|>{END}", [([1], False), ([2], True)]),
        ("a <|mt_1|><|mt_2|> b", [([1, 2], False)]),
        ("<|mt_1|> b <|mt_2|>", [([1], False), ([2], False)]),
        (f"<|mt_1|>{END}", [([1], False)]),
        (f"<|mt_1|>{START}<|mt_2|>{END}", [([1], False), ([2], True)]),
        (f"a {END}", [([], False)]),
        (f"{START}<|mt_1|>{END}{END}", [([1], True), ([], False)]),
        (START + END, [([], False)]),
        (START, [([], False)]),
        (f"{START}<|mt_1|>x<|mt_2|>{END}", [([1, 2], False)]),
        (f"{START}<|mt_1|> \n<|mt_2|> {END}", [([1, 2], True)]),
        (f"{START}<|mt_1|><|mt_16|><|mt_2|>{END}", [([1, 2], False)]),
        (f"{START}<|mt_01|>{END}", [([], False)]),
        (f"{START}<|mt_١|>{END}", [([], False)]),
        (f"{START}<|mt_-1|>{END}", [([], False)]),
        (f"{START}<|mt_{'9' * 5000}|><|mt_3|>{END}", [([3], False)]),
        (START + "<|mt_1|>" * 33 + END, [([1] * 32, False)]),
    ],
)
def test_malformed_masks_are_marked_never_guessed(text, expected):
    assert found(text, codebook_size=16) == expected


def test_a_huge_code_is_dropped_without_a_codebook_size_too():
    assert found(f"{START}<|mt_{'9' * 5000}|>{END}") == [([], False)]


def test_offsets_cover_the_mask_and_leave_the_text_around_it():
    whole, cut = f"{START}<|mt_1|> {END}", f"{START}<|mt_2|>"
    text = f"é {whole}. Cut: {cut} so"
    second = text.index(cut)
    assert text_to_codes(text) == [
        MaskSpan([1], 2, 2 + len(whole), True),
        MaskSpan([2], second, second + len(cut), False),
    ]


def test_long_hostile_texts_are_read_in_linear_time():
    assert len(text_to_codes(START * 20000)) == 20000
    assert text_to_codes("<|mt_1111" * 20000) == []


def test_placeholders_are_counted():
    assert count_placeholders("a<mask>b<mask>") == 2


def test_the_references_placeholder_becomes_ours_and_other_masks_stay():
    reference, other = codes_to_text([0] * 32), codes_to_text([0, 0])
    assert reference_placeholder_to_mask(f"At {reference}, {other}, {reference}.") == f"At <mask>, {other}, <mask>."


@pytest.mark.parametrize("size", [1, 2, 9, 10, 11, 100, 101, 256, 1000, 1024, 4096])
def test_mask_regex_accepts_exactly_the_codes_of_the_codebook(size):
    pattern = re.compile(mask_regex(size, 2))
    for code in {0, 1, size - 1, size, size + 1, size // 2, 10 * size, 99, 100, 101, 1023, 1024}:
        assert bool(pattern.fullmatch(START + mask_token(code) + END)) == (code < size)
    assert not pattern.fullmatch(START + END)
    assert pattern.fullmatch(codes_to_text([0, 0])) and not pattern.fullmatch(codes_to_text([0, 0, 0]))
    assert not pattern.fullmatch(f"{START}<|mt_00|>{END}")


@pytest.mark.parametrize("script", SCRIPTS)
def test_masks_among_text_in_any_script_are_found_whole(script):
    text = f"{script}{codes_to_text([7])}{script}{codes_to_text([1, 2])}{script}{START}<|mt_3|>{script}"
    assert found(text, codebook_size=16) == [([7], True), ([1, 2], True), ([3], False)]
    assert re.fullmatch(answer_regex(16), text.removesuffix(f"{START}<|mt_3|>{script}"))
    assert re.fullmatch(
        answer_regex(16, labels=True), f"{script}: {codes_to_text([7])}\n{script}: {codes_to_text([1])}"
    )


@given(texts)
def test_answers_with_labels_are_lines_of_a_label_and_a_mask(text):
    whole = re.compile(answer_regex(50, 4, min_masks=1, labels=True))
    line = re.compile(rf"[^\n\r:< ][^\n\r:<]*: {mask_regex(50, 4)}")
    for answer in (text, text.replace(":", "").replace("\n", ": ")):
        assert bool(whole.fullmatch(answer)) == all(line.fullmatch(part) for part in answer.split("\n"))


def test_labels_are_counted_like_masks():
    lines = ["cat: " + codes_to_text([1]), "small dog: " + codes_to_text([2, 3])] * 2
    for least, most in ((0, None), (0, 2), (1, 1), (2, 3)):
        pattern = re.compile(answer_regex(16, 4, least, most, labels=True))
        for count in range(5):
            assert bool(pattern.fullmatch("\n".join(lines[:count]))) == (least <= count <= (most or 4))
    with pytest.raises(ValueError, match="max_masks"):
        answer_regex(16, max_masks=0, labels=True)


def test_answers_without_masks_are_any_text_without_mask_tokens():
    pattern = re.compile(answer_regex(16, max_masks=0))
    assert pattern.fullmatch("no <|cat") and pattern.fullmatch("")
    assert not pattern.fullmatch(codes_to_text([1])) and not pattern.fullmatch("<|mt_x")


def test_answer_regex_bounds_the_number_of_masks():
    mask = codes_to_text([1])
    pattern = answer_regex(16, min_masks=1, max_masks=2)
    assert [bool(re.fullmatch(pattern, f"a <|mt{mask}" * n + "<|")) for n in range(4)] == [False, True, True, False]
    with pytest.raises(ValueError, match="min_masks"):
        answer_regex(16, min_masks=2, max_masks=1)
    assert "(?=" not in pattern and "(?!" not in pattern and "(?<" not in pattern
