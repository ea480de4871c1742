"""Other engines are asked for the log-probabilities that soft decoding needs; responses hold what was requested."""

import asyncio
from functools import partial
from types import SimpleNamespace

import pytest
from runs import infer, read_rows, write_rows
from swift.infer_engine import InferEngine, RequestConfig
from swift.pipelines.infer.infer import SwiftInfer

from himtok_plugin import Segmenter
from himtok_plugin.swift_integration.answering.engine_logprobs import infer_with_logprobs, needs_logprobs
from himtok_plugin.swift_integration.answering.response_masks import RESPONSE_ATTRIBUTE
from himtok_plugin.swift_integration.model.mask_runtime import get_mask_runtime
from himtok_plugin.swift_integration.serving.answers import answer_with_segments
from himtok_plugin.swift_integration.serving.chat_requests import SegmentInferRequest
from himtok_plugin.swift_integration.serving.segment_stream import PROBABILITIES_ATTRIBUTE

FIVE = (True, 5)
NONE = (False, None)


class VllmEngine:
    """ms-swift's own engine under the name of another: only what that one would return leaves it.

    Attributes:
        asked: (`logprobs`, `top_logprobs`) of every call.
    """

    def __init__(self, engine):
        self._engine = engine
        self.template = engine.template
        self.asked = []

    def infer(self, requests, config, **kwargs):
        self.asked.append((config.logprobs, config.top_logprobs))
        responses = self._engine.infer(requests, config, **kwargs)
        return [map(self._strip, each) if config.stream else self._strip(each) for each in responses]

    async def infer_async(self, request, config):
        (answer,) = self.infer([request], config, use_tqdm=False)
        return _iterate(answer) if config.stream else answer

    def _strip(self, response):
        get_mask_runtime(self.template).generation._recorder = None
        vars(response).pop(PROBABILITIES_ATTRIBUTE, None)
        for choice in response.choices:
            vars(getattr(choice, "message", choice)).pop(RESPONSE_ATTRIBUTE, None)
        return response


async def _iterate(chunks):
    for chunk in chunks:
        yield chunk


@pytest.fixture(scope="module")
def rows(world, tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", read_rows(world.scenes)[:4])


@pytest.fixture(scope="module")
def own(stage_two, rows, tmp_path_factory):
    """Results of ms-swift's own engine, from the probabilities of all codes."""
    return infer(rows, tmp_path_factory.mktemp("own") / "out.jsonl", model=stage_two[1])


@pytest.fixture
def run(stage_two, rows, tmp_path, monkeypatch):
    """Results of `swift infer` with another engine, and what that was asked for."""
    engines, init = [], SwiftInfer.__init__

    def init_with_another_engine(self, *args):
        init(self, *args)
        self.infer_engine = VllmEngine(self.infer_engine)
        engines.append(self.infer_engine)

    monkeypatch.setattr(SwiftInfer, "__init__", init_with_another_engine)

    def run(**options):
        results = infer(rows, tmp_path / f"out{len(engines)}.jsonl", model=stage_two[1], **options)
        return results, engines[-1].asked

    return run


def assert_masks_are_soft(results, own):
    for row, expected in zip(results, own, strict=True):
        assert row["response"] == expected["response"]
        for mask, other in zip(row["masks"], expected["masks"], strict=True):
            assert mask["codes"] == other["codes"] and mask["score"] == pytest.approx(other["score"], abs=0.05)


def test_engine_is_asked_and_results_hold_no_log_probabilities(run, own):
    results, asked = run()
    assert asked == [FIVE] and any(row["masks"] for row in results)
    assert_masks_are_soft(results, own)
    assert all(row["logprobs"] is None for row in results)


def test_streams_are_decoded_softly(run, own):
    results, asked = run(stream=True)
    assert set(asked) == {FIVE}
    assert_masks_are_soft(results, own)


@pytest.mark.parametrize("requested", [None, 2, 8])
def test_results_hold_the_log_probabilities_that_were_requested(run, requested):
    results, asked = run(logprobs=True, top_logprobs=requested)
    assert asked == [(True, max(requested or 0, 5))]
    for row in results:
        for entry in row["logprobs"]["content"]:
            assert entry["logprob"] <= 0
            if requested is None:
                assert not entry.get("top_logprobs")
            else:
                assert len(entry["top_logprobs"]) == requested


def test_hard_decoding_asks_for_none(run):
    results, asked = run(mask_decoding="hard")
    assert asked == [NONE]
    assert {mask["score"] for row in results for mask in row["masks"]} == {None}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_segments_of_a_server_have_scores(stage_two, rows, own, stream):
    engine = VllmEngine(Segmenter.from_pretrained(stage_two[1]).engine)
    runtime, row = get_mask_runtime(engine.template), read_rows(rows)[0]
    request = SegmentInferRequest(messages=row["messages"][:1], images=row["images"])
    config = RequestConfig(max_tokens=48, temperature=0, stream=stream)
    infer_async = partial(infer_with_logprobs, engine.infer_async)

    async def answer():
        answer = await answer_with_segments(runtime, infer_async, request, config)
        return [chunk async for chunk in answer] if stream else [answer]

    choices = [each.choices[0] for each in asyncio.run(answer())]
    assert engine.asked == [FIVE] and all(choice.logprobs is None for choice in choices)
    messages = [choice.delta if stream else choice.message for choice in choices]
    segments = [segment for message in messages for segment in message.segments or []]
    assert segments and [segment["codes"] for segment in segments] == [mask["codes"] for mask in own[0]["masks"]]
    scores = [mask["score"] for mask in own[0]["masks"]]
    assert [segment["score"] for segment in segments] == pytest.approx(scores, abs=0.05)


def engine_of(kind: str):
    return type(kind, (), {})()


def test_engines_that_return_none_are_refused():
    soft, hard = SimpleNamespace(mask_decoding="soft"), SimpleNamespace(mask_decoding="hard")
    assert needs_logprobs(engine_of("VllmEngine"), soft, stream=True) and needs_logprobs(
        engine_of("LmdeployEngine"), soft
    )
    assert not needs_logprobs(engine_of("TransformersEngine"), soft)
    with pytest.raises(ValueError, match="mask_decoding: got 'soft', expected 'hard' with infer_backend='sglang'"):
        needs_logprobs(engine_of("SglangEngine"), soft)
    with pytest.raises(ValueError, match="stream: got True, expected False with infer_backend='lmdeploy'"):
        needs_logprobs(engine_of("LmdeployEngine"), soft, stream=True)
    for kind in ("VllmEngine", "SglangEngine", "LmdeployEngine"):
        assert not needs_logprobs(engine_of(kind), hard, stream=True)


def test_refused_engine_does_not_load_its_model(stage_two):
    template = Segmenter.from_pretrained(stage_two[1]).engine.template
    sglang = type("SglangEngine", (InferEngine,), {"infer_async": None})
    with pytest.raises(ValueError, match="infer_backend='sglang'"):
        sglang(template)  # ms-swift's class calls this before it starts the engine
