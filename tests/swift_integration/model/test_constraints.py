"""Constraints on answers are options of `swift infer`; each engine of ms-swift gets them in its own form."""

import itertools
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from paths import EXAMPLES
from runs import flags, infer, read_rows, write_rows

from himtok_plugin.mask_text import answer_regex, text_to_codes

ANY = answer_regex(12, 4)


@pytest.fixture
def run(stage_two, world, tmp_path):
    number = itertools.count()

    def run(rows=None, **options):
        rows = world.scenes if rows is None else write_rows(tmp_path / "rows.jsonl", rows)
        defaults = {"model": stage_two[1], "max_batch_size": 8}
        return infer(rows, tmp_path / f"out{next(number)}.jsonl", **{**defaults, **options})

    return run


@pytest.fixture
def pipeline(stage_two, world, tmp_path):
    """`swift infer`, loaded but not run."""
    from swift.pipelines.infer.infer import SwiftInfer

    def load(**options):
        defaults = {"model": stage_two[1], "val_dataset": world.scenes, "result_path": tmp_path / "unused.jsonl"}
        return SwiftInfer(flags(**{**defaults, "max_new_tokens": 48, "temperature": 0, "max_batch_size": 4, **options}))

    return load


@pytest.mark.parametrize("sampled", [False, True])
def test_answers_have_exactly_the_requested_number_of_masks(run, sampled):
    options = {"temperature": 1.5} if sampled else {}
    for row in run(min_masks=3, max_masks=3, max_new_tokens=80, **options):
        assert [mask["complete"] for mask in row["masks"]] == [True] * 3
        assert re.fullmatch(answer_regex(12, 4, 3, 3), row["response"])


def test_answers_have_no_masks_if_none_is_allowed(run):
    assert all(row["masks"] == [] and "<|mt_" not in row["response"] for row in run(max_masks=0))


def test_masks_of_a_question_do_not_count(run, world):
    row = world.row("<image>Segment what is beside <mask>.", "<mask>", masks=[world.right, world.left])
    (result,) = run([row], min_masks=1, max_masks=1)
    assert len(result["masks"]) == 1


def test_labelled_answers_are_lists_of_labels_and_masks(run):
    for row in run(mask_labels=True, min_masks=1, max_masks=2, temperature=1.0, max_new_tokens=200):
        spans = text_to_codes(row["response"], 12, 4)
        if spans and spans[-1].complete and row["response"].endswith("<|mt_end|>"):
            assert re.fullmatch(answer_regex(12, 4, 1, 2, labels=True), row["response"])
        assert len(spans) <= 2


def test_beam_search_obeys_the_constraints(run):
    for row in run(num_beams=2, min_masks=2, max_masks=2):
        assert [mask["complete"] for mask in row["masks"]] == [True] * 2


def test_streamed_answers_obey_the_constraints(run):
    for row in run(stream=True, max_batch_size=None, min_masks=2, max_masks=2, temperature=2.0, max_new_tokens=60):
        assert [mask["complete"] for mask in row["masks"]] == [True] * 2


def test_masks_ended_early_are_shorter_complete_and_scored(run):
    whole, early = run(), run(mask_early_stop=1e-6)
    masks = [mask for row in early for mask in row["masks"]]
    assert masks and all(mask["codes"] and mask["complete"] and 0 <= mask["score"] <= 1 for mask in masks)
    assert sum(len(m["codes"]) for m in masks) < sum(len(m["codes"]) for row in whole for m in row["masks"])


def test_masks_from_log_probabilities_equal_soft_decoding(pipeline, world):
    """ms-swift's own engine returns them as servers do; all 12 codes are among 40 alternatives."""
    from swift.infer_engine import InferRequest, RequestConfig

    from himtok_plugin.swift_integration.answering.response_masks import RESPONSE_ATTRIBUTE, predict_masks_from_text
    from himtok_plugin.swift_integration.model.mask_runtime import get_mask_runtime

    loaded = pipeline()
    runtime = get_mask_runtime(loaded.template)
    rows = read_rows(world.scenes)[:4]
    for row in rows:
        row["messages"] = row["messages"][:1]
    requests = [InferRequest(messages=row["messages"], images=row["images"]) for row in rows]
    config = RequestConfig(max_tokens=48, temperature=0, logprobs=True, top_logprobs=600)
    responses = loaded.infer_engine.infer(requests, config, use_tqdm=False)
    compared = 0
    for row, response in zip(rows, responses, strict=True):
        choice = response.choices[0]
        runtime.generation._recorder = None  # as with an engine that shows no logits
        listed = predict_masks_from_text(runtime, choice.message.content, row, choice.logprobs)
        for one, other in zip(listed, getattr(choice.message, RESPONSE_ATTRIBUTE), strict=True):
            assert one.codes == other.codes and one.score == pytest.approx(other.score, abs=1e-3)
            assert (one.mask != other.mask).mean() < 0.01
            compared += 1
        cut = {"content": choice.logprobs["content"][:3]}
        unknown = predict_masks_from_text(runtime, choice.message.content, row, cut)
        assert all(mask.score is None for mask in unknown)
    assert compared > 2


def engine(name: str, template):
    """An engine of ms-swift's class of this name that can only prepare sampling parameters."""
    from swift.infer_engine.infer_engine import InferEngine

    def prepare(self, request_config):
        if name == "VllmEngine":  # what ms-swift's does with it
            return SimpleNamespace(regex=request_config.structured_outputs_regex)
        return {} if name == "SglangEngine" else SimpleNamespace(response_format=None)

    kind = type(name, (InferEngine,), {"_prepare_generation_config": prepare, "infer_async": None})
    return type(f"Own{name}", (kind,), {})(template)


def get_regex(prepared) -> str | None:
    if isinstance(prepared, dict):
        return prepared.get("regex")
    if hasattr(prepared, "regex"):
        return prepared.regex
    return prepared.response_format and prepared.response_format["regex_schema"]


@pytest.mark.parametrize("name", ["VllmEngine", "SglangEngine", "LmdeployEngine"])
def test_other_engines_get_the_run_s_regular_expression(pipeline, name):
    from swift.infer_engine import RequestConfig

    template = pipeline(num_mask_tokens=2, min_masks=1, max_masks=1, mask_decoding="hard").template
    request = RequestConfig()
    assert get_regex(engine(name, template)._prepare_generation_config(request)) == answer_regex(12, 2, 1, 1)
    assert request.structured_outputs_regex is None
    own = RequestConfig(structured_outputs_regex="yes|no")
    assert get_regex(engine(name, template)._prepare_generation_config(own)) == "yes|no"


def test_unconstrained_generation_and_other_engines_get_none(pipeline):
    from swift.infer_engine import RequestConfig

    free = pipeline(constrained_decoding=False).template
    assert get_regex(engine("VllmEngine", free)._prepare_generation_config(RequestConfig())) is None
    assert get_regex(engine("OtherEngine", pipeline().template)._prepare_generation_config(RequestConfig())) is None


def test_ms_swift_passes_its_regular_expression_to_vllm():
    from importlib.util import find_spec

    source = Path(find_spec("swift.infer_engine").origin).with_name("vllm_engine.py").read_text(encoding="utf-8")
    assert "StructuredOutputsParams(regex=request_config.structured_outputs_regex)" in source


@pytest.mark.slow
def test_example_measures_fewer_tokens(stage_two, world, tmp_path):
    example = EXAMPLES / "04_fewer_tokens.py"
    arguments = [stage_two[1], world.scenes, "--tokens", "2", "4", "--early_stop", "0.5", "--limit", "4"]
    done = subprocess.run([sys.executable, example, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split("|") for line in done.stdout.splitlines() if line.startswith(("| 2 ", "| 4 ", "| early"))]
    assert len(lines) == 3 and all(0 <= float(value) <= 1 for line in lines for value in line[3:7])
