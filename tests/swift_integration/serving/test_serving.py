"""`swift deploy` with clients of the `openai` package: each gets its own masks, a bad request gets a reason."""

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import pytest
from runs import infer, mask_of, read_rows, write_rows
from servers import KEY, MAX_MASKS, MAX_PIXELS, MODEL, data_url, png
from swift.infer_engine import RequestConfig
from swift.infer_engine.protocol import (
    ChatCompletionResponse,
    ChatCompletionResponseChoice,
    ChatCompletionResponseStreamChoice,
    ChatCompletionStreamResponse,
    ChatMessage,
    DeltaMessage,
    UsageInfo,
)

from himtok_plugin import Segmenter
from himtok_plugin.client import ClientError, MaskClient
from himtok_plugin.mask_text import MASK_END, codes_to_text
from himtok_plugin.masks import load_mask, mask_bbox, to_rle
from himtok_plugin.masks.polygons import polygons_to_mask
from himtok_plugin.swift_integration.model.mask_runtime import get_mask_runtime
from himtok_plugin.swift_integration.serving.answers import answer_with_segments
from himtok_plugin.swift_integration.serving.chat_requests import SegmentInferRequest
from himtok_plugin.words.known_words import KnownWords


@pytest.fixture(scope="module")
def scenes(stage_two, world, tmp_path_factory):
    """(question, image as data URL, what `swift infer` answers) of every scene."""
    file = tmp_path_factory.mktemp("expected") / "out.jsonl"
    answered = infer(world.scenes, file, model=stage_two[1], max_batch_size=8)
    scenes = []
    for row, answer in zip(read_rows(world.scenes), answered, strict=True):
        question = row["messages"][0]["content"].removeprefix("<image>")
        scenes.append((question, data_url(Path(row["images"][0]).read_bytes()), answer))
    return scenes


def ask(client, question: str, url: str | None, stream: bool = False, model: str = MODEL, extra=None, **options):
    """The answer to one question: ms-swift's response, or the list of its chunks."""
    content = [{"type": "text", "text": question}]
    if url is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": content}], stream=stream, extra_body=extra, **options
    )
    return list(answer) if stream else answer


def text_and_segments(answer) -> tuple[str, list[dict]]:
    """Text and segments of a plain answer, or of all chunks of a streamed one."""
    if not isinstance(answer, list):
        message = answer.choices[0].message
        return message.content, message.segments
    deltas = [chunk.choices[0].delta for chunk in answer]
    return "".join(d.content or "" for d in deltas), [s for d in deltas for s in d.segments or []]


def check_answer(answer, expected: dict) -> None:
    """Same text and same masks as in a result row of `swift infer`."""
    text, segments = text_and_segments(answer)
    assert text == expected["response"]
    assert len(segments) == len(expected["masks"])
    for segment, mask in zip(segments, expected["masks"], strict=True):
        assert {key: segment[key] for key in ("size", "counts", "codes", "complete")} == {
            key: mask[key] for key in ("size", "counts", "codes", "complete")
        }
        assert segment["score"] == pytest.approx(mask["score"], abs=1e-4)


def select_rle(segment: dict) -> dict:
    return {key: segment[key] for key in ("size", "counts")}


def test_answers_have_text_and_segments(client, scenes):
    assert max(len(row["masks"]) for *_, row in scenes) >= 2 and min(len(row["masks"]) for *_, row in scenes) == 0
    for question, url, row in scenes[:8]:
        answer = ask(client, question, url)
        check_answer(answer, row)
        for segment in answer.choices[0].message.segments:
            mask = load_mask(select_rle(segment))
            assert np.array_equal(polygons_to_mask(segment["polygon"], mask.shape), mask)
            assert segment["bbox"] == list(mask_bbox(mask))
            assert segment["label"] is None and segment["size"] == [64, 64]


def test_stream_sends_each_segment_with_the_chunk_that_closes_its_mask(client, scenes):
    question, url, row = max(scenes, key=lambda scene: len(scene[2]["masks"]))
    chunks = ask(client, question, url, stream=True)
    check_answer(chunks, row)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    closing = [delta for delta in deltas if delta.segments]
    assert len(closing) == len(row["masks"]) >= 2
    assert all(delta.content.endswith(MASK_END) and len(delta.segments) == 1 for delta in closing)
    assert not any(delta.previews for delta in deltas)


def test_stream_previews_masks_after_the_requested_tokens(client, scenes):
    question, url, row = max(scenes, key=lambda scene: len(scene[2]["masks"]))
    chunks = ask(client, question, url, stream=True, extra={"mask_previews": [1, 3]})
    check_answer(chunks, row)
    previews = [preview for chunk in chunks for preview in chunk.choices[0].delta.previews or []]
    expected = [(i, mask["codes"][:n]) for i, mask in enumerate(row["masks"]) for n in (1, 3) if n < len(mask["codes"])]
    assert [(preview["index"], preview["codes"]) for preview in previews] == expected
    for preview in previews:
        assert not preview["complete"] and preview["size"] == [64, 64] and 0 <= preview["score"] <= 1


def test_the_package_s_client_gets_a_small_preview_after_every_token(server, scenes):
    question, url, row = max(scenes, key=lambda scene: len(scene[2]["masks"]))
    messages = [{"role": "user", "content": question}]
    updates = list(MaskClient(server, KEY).ask(messages, [url], previews="all", preview_side=16))
    assert updates[-1].finished and updates[-1].text == row["response"]
    assert [segment["counts"] for segment in updates[-1].segments] == [mask["counts"] for mask in row["masks"]]
    previews = [update.preview for update in updates if update.preview]
    count = len(row["masks"][0]["codes"])  # a preview after the last token may or may not come before the mask
    expected = [mask["codes"][:n] for mask in row["masks"] for n in range(1, count)]
    assert [preview["codes"] for preview in previews if len(preview["codes"]) < count] == expected
    assert all(preview["size"] == [16, 16] for preview in previews)
    with pytest.raises(ClientError, match="preview_side: got -1"):
        list(MaskClient(server, KEY).ask(messages, [url], preview_side=-1))
    with pytest.raises(ClientError, match="API key"):
        list(MaskClient(server, "wrong").ask(messages, [url]))


@pytest.fixture
def known_words(running, monkeypatch):
    """Words of the server's model: those of the first scene's question."""

    def set_words(question):
        monkeypatch.setattr(get_mask_runtime(running[1].template), "known_words", KnownWords.of_texts([question]))

    return set_words


def test_messages_name_unknown_words_where_there_are_some(client, scenes, known_words):
    question, url, _ = scenes[0]
    known_words(question)
    doubtful = "Segment the bus, please."
    words = KnownWords.of_texts([question]).find_unknown(doubtful)
    assert words[-2:] == ["bus", "please"]
    assert ask(client, doubtful, url).choices[0].message.unknown_words == words
    assert not hasattr(ask(client, question, url).choices[0].message, "unknown_words")
    first, *rest = [chunk.choices[0].delta for chunk in ask(client, doubtful, url, stream=True)]
    assert first.unknown_words == words and not any(hasattr(delta, "unknown_words") for delta in rest)
    deltas = [chunk.choices[0].delta for chunk in ask(client, question, url, stream=True)]
    assert not any(hasattr(delta, "unknown_words") for delta in deltas)


def test_masks_have_the_size_of_the_image(client):
    answer = ask(client, "Segment the large red triangle.", data_url(png(48, 64)))
    segments = answer.choices[0].message.segments
    assert segments and all(segment["size"] == [48, 64] for segment in segments)


def test_answer_without_an_image_has_no_segments(client):
    assert ask(client, "Hello.", None, max_tokens=8).choices[0].message.segments == []


def test_mask_truncated_by_the_token_limit_is_sent_and_marked(client, scenes):
    question, url, row = next(scene for scene in scenes if scene[2]["masks"])
    start = next(i for i in range(1, 48) if "<|mt_" in text_and_segments(ask(client, question, url, max_tokens=i))[0])
    for stream in (False, True):
        _, (segment,) = text_and_segments(ask(client, question, url, stream, max_tokens=start + 2))
        assert not segment["complete"] and segment["codes"] == row["masks"][0]["codes"][:2]


def test_several_choices_have_their_own_segments(client, scenes):
    question, url, _ = scenes[0]
    choices = ask(client, question, url, n=3, temperature=2.0, max_tokens=60).choices
    assert len(choices) == 3
    for choice in choices:
        assert choice.message.content.count(MASK_END) <= len(choice.message.segments)
        for segment in choice.message.segments:
            assert "".join(f"<|mt_{code}|>" for code in segment["codes"]) in choice.message.content


def test_masks_in_questions_are_read(client, world, stage_two, tmp_path):
    url = data_url(world.image.read_bytes())
    question = "Segment what is beside <mask>."
    masks = [world.right, world.left, mask_of(48, 64, 0, 48, 0, 64)]
    rows = [world.row(f"<image>{question}", masks=[mask]) for mask in masks]
    expected = infer(write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl", model=stage_two[1])
    sources = [to_rle(masks[0]), to_rle(masks[1]), {"size": [48, 64], "counts": [0, 48 * 64]}]
    for source, row in zip(sources, expected, strict=True):
        check_answer(ask(client, question, url, extra={"masks": [source]}), row)
        check_answer(ask(client, question, url, stream=True, extra={"masks": [source]}), row)


RLE = to_rle(mask_of(48, 64, 8, 40, 4, 20))
ABOUT = "Segment what is beside <mask>."
# What is wrong, and a word of the reason.
BAD = {
    "not an image": ({"url": data_url(b"This is no image.")}, "expected an image"),
    "half an image": ({"url": data_url(png(48, 64)[:2000])}, "truncated"),
    "not base64": ({"url": "data:image/png;base64,?"}, "image"),
    "file of the server": ({"url": "/no/such/image.png"}, "SWIFT_MEDIA_ALLOWED_DIRS"),
    "too large an image": ({"url": data_url(png(200, 200))}, f"at most {MAX_PIXELS}"),
    "unknown model": ({"model": "gpt-4"}, "gpt-4"),
    "broken RLE": ({"question": ABOUT, "extra": {"masks": [{**RLE, "counts": "???"}]}}, "masks[0]: counts"),
    "cut RLE": ({"question": ABOUT, "extra": {"masks": [{**RLE, "counts": RLE["counts"][:-4]}]}}, "masks[0]: counts"),
    "RLE of another size": ({"question": ABOUT, "extra": {"masks": [{**RLE, "size": [64, 48]}]}}, "[48, 64]"),
    "huge RLE": ({"question": ABOUT, "extra": {"masks": [{**RLE, "size": [10**6, 10**6]}]}}, "[48, 64]"),
    "path of a mask": ({"question": ABOUT, "extra": {"masks": ["/etc/passwd"]}}, "expected a COCO RLE"),
    "polygons": ({"question": ABOUT, "extra": {"masks": [{"size": [48, 64], "polygons": []}]}}, "expected a COCO RLE"),
    "too many masks": ({"question": ABOUT * 4, "extra": {"masks": [RLE] * 4}}, f"at most {MAX_MASKS}"),
    "too few masks": ({"question": ABOUT}, "got 0, expected 1, one for each <mask>"),
    "mask without an image": ({"url": None, "question": ABOUT, "extra": {"masks": [RLE]}}, "masks: got no image"),
    "masks that are no list": ({"question": ABOUT, "extra": {"masks": 3}}, "masks"),
    "preview after no token": ({"extra": {"mask_previews": [0]}}, "mask_previews"),
    "temperature below 0": ({"temperature": -1.0}, "temperature"),
    "too many characters": ({"question": "Segment it. " * 2000}, "characters"),
    "too many tokens": ({"question": "Segment it. " * 1000}, "max_"),
    "no messages": ({"extra": {"messages": None}}, "messages"),
    "message without content": ({"extra": {"messages": [{"role": "user"}]}}, "content"),
    "message without role": ({"extra": {"messages": [{"content": "Hello."}]}}, "role"),
}


def send_bad_request(client, stream: bool, url=None, question="Segment it.", **changes):
    changes.setdefault("temperature", 0)
    return ask(client, question, url, stream, **changes)


def bad_request(client, name: str, stream: bool) -> openai.APIStatusError:
    changes, _ = BAD[name]
    with pytest.raises(openai.APIStatusError) as error:
        send_bad_request(client, stream, **{"url": data_url(png(48, 64)), **changes})
    return error.value


def check_refusal(error: openai.APIStatusError, name: str) -> None:
    assert 400 <= error.status_code < 500 and BAD[name][1] in error.message, (name, error.message)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("name", BAD)
def test_bad_request_is_refused_with_a_reason(client, scenes, name, stream):
    check_refusal(bad_request(client, name, stream), name)
    check_answer(ask(client, scenes[1][0], scenes[1][1]), scenes[1][2])


def test_wrong_key_is_refused(client):
    with pytest.raises(openai.APIStatusError) as error:
        ask(client.with_options(api_key="guess"), "Hello.", None)
    assert 400 <= error.value.status_code < 500 and "API key" in error.value.message


def test_each_of_32_clients_gets_its_own_answer(server, scenes):
    """65 requests, half of them streams, a third of them bad, and bad and good ones in the same batches."""
    assert len({row["response"] for *_, row in scenes}) > 5
    jobs = [(i % 2 == 1, scenes[i % len(scenes)]) for i in range(43)]
    jobs += [(i % 2 == 1, name) for i, name in enumerate(BAD)]
    random.Random(0).shuffle(jobs)

    def run(job) -> None:
        stream, asked = job
        with openai.OpenAI(base_url=server, api_key=KEY, max_retries=0, timeout=120) as client:
            if isinstance(asked, str):
                check_refusal(bad_request(client, asked, stream), asked)
            else:
                extra = {"mask_previews": [2]} if stream else None
                check_answer(ask(client, asked[0], asked[1], stream, extra=extra), asked[2])

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(run, jobs))


def test_models_are_listed_and_completions_still_served(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.completions.create(model=MODEL, prompt="Hello.", max_tokens=4).choices[0].text is not None


@pytest.fixture(scope="module")
def runtime(stage_two):
    return get_mask_runtime(Segmenter.from_pretrained(stage_two[1]).engine.template)


TEXT = f"left: {codes_to_text([1, 2, 3, 4])}, right: {codes_to_text([5, 6])} and <|mt_start|><|mt_7|><|mt_8|>"


def other_engine(text: str, pieces: int):
    """`infer_async` of an engine without masks; it streams `pieces` characters at a time."""

    async def chunks():
        for start in range(0, len(text), pieces):
            finish = "stop" if start + pieces >= len(text) else None
            delta = DeltaMessage(role="assistant", content=text[start : start + pieces])
            yield ChatCompletionStreamResponse("m", [ChatCompletionResponseStreamChoice(0, delta, finish)])

    async def infer(request, config):
        if config.stream:
            return chunks()
        choice = ChatCompletionResponseChoice(0, ChatMessage("assistant", text), "stop")
        return ChatCompletionResponse("m", [choice], UsageInfo(0, 0, 0))

    return infer


def segments_from_text(runtime, world, stream: bool, pieces: int = 1, previews=None) -> tuple[list, list]:
    """(segments, previews) of another engine's answer."""
    message = {"role": "user", "content": "<image>Segment it."}
    request = SegmentInferRequest([message], images=[str(world.image)], mask_previews=previews)

    async def run():
        answer = await answer_with_segments(runtime, other_engine(TEXT, pieces), request, RequestConfig(stream=stream))
        return [chunk async for chunk in answer] if stream else answer

    answer = asyncio.run(run())
    assert text_and_segments(answer)[0] == TEXT
    given = [p for chunk in answer for p in chunk.choices[0].delta.previews or []] if stream else []
    return text_and_segments(answer)[1], given


def test_engines_without_recorded_probabilities_get_masks_from_their_text(runtime, world):
    segments, _ = segments_from_text(runtime, world, stream=False)
    assert [segment["codes"] for segment in segments] == [[1, 2, 3, 4], [5, 6], [7, 8]]
    assert [segment["label"] for segment in segments] == ["left", "right", None]
    assert [segment["complete"] for segment in segments] == [True, True, False]
    assert all(segment["size"] == [48, 64] and segment["score"] is None for segment in segments)
    for pieces in (1, 7, 25, 1000):
        assert segments_from_text(runtime, world, True, pieces)[0] == segments


def test_each_preview_is_sent_once_for_any_chunk_size(runtime, world):
    expected = [(0, [1]), (0, [1, 2]), (1, [5]), (1, [5, 6]), (2, [7])]
    for pieces in (1, 5):
        _, previews = segments_from_text(runtime, world, True, pieces, [1, 2])
        assert [(preview["index"], preview["codes"]) for preview in previews] == expected


def test_server_option_sets_previews_if_the_request_does_not(runtime, world, monkeypatch):
    monkeypatch.setattr(runtime.settings, "mask_previews", [2])
    _, previews = segments_from_text(runtime, world, True)
    assert [(preview["index"], preview["codes"]) for preview in previews] == [(0, [1, 2]), (1, [5, 6])]
    assert segments_from_text(runtime, world, True, previews=[])[1] == []


def test_stream_with_zoom_is_refused(runtime, world, monkeypatch):
    monkeypatch.setattr(runtime.settings, "refiner", "zoom")
    with pytest.raises(ValueError, match="stream: got True, expected False: this server's --refiner zoom"):
        segments_from_text(runtime, world, stream=True)
    assert len(segments_from_text(runtime, world, stream=False)[0]) == 3


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_segments_are_refined_and_previews_are_not(runtime, world, monkeypatch, stream):
    before, first = segments_from_text(runtime, world, stream, 5, [1])
    monkeypatch.setattr(runtime.settings, "refiner", "sam2")
    monkeypatch.setattr(type(runtime), "refiner", lambda self: lambda image, masks, squares: [~m for m in masks])
    after, second = segments_from_text(runtime, world, stream, 5, [1])
    assert first == second and len(after) == len(before)
    for one, other in zip(before, after, strict=True):
        assert (
            np.array_equal(load_mask(select_rle(one)), ~load_mask(select_rle(other))) and one["codes"] == other["codes"]
        )
