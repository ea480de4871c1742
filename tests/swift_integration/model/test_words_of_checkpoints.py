"""`known_words.json`: which checkpoints have one, and with which words."""

import shutil
from types import SimpleNamespace

import pytest
from datasets import Dataset, Features, Json, List
from runs import export, pretrain, read_rows, write_rows

from himtok_plugin.swift_integration.samples import training_words
from himtok_plugin.swift_integration.samples.training_words import can_know_training_words, find_training_words
from himtok_plugin.words.known_words import KnownWords

LORA = {"tuner_type": "lora", "target_modules": "all-linear", "save_strategy": "steps", "save_steps": 1}
EARLIER = {"earlier", "words"}


@pytest.fixture(scope="module")
def base(world, tmp_path_factory):
    """An LMM whose whole training is known."""
    folder = tmp_path_factory.mktemp("base") / "lmm"
    shutil.copytree(world.lmm, folder)
    KnownWords(frozenset(EARLIER)).save(folder)
    return folder


@pytest.fixture
def row(world):
    def make(question, answer="The mask appears at <mask>."):
        return world.row(f"<image>{question}", answer, masks=[world.left])

    return make


@pytest.fixture
def warnings(monkeypatch):
    """Warnings about words, of those that ms-swift's logger gets."""
    said = []

    def warn(text, *args, **kwargs):
        if "training questions" in text:
            said.append(text)

    monkeypatch.setattr(training_words.logger, "warning", warn)
    return said


def words(folder):
    loaded = KnownWords.load(folder)
    return None if loaded is None else set(loaded.words)


def test_a_training_adds_the_words_of_its_questions(train, base, row, tmp_path, warnings):
    rows = [
        row("Segment the bus."),
        row("Segment the bus.", "No words of answers: <mask>."),
        row("Where is Anna's 2nd?"),
    ]
    train(rows * 2, model=base, save_strategy="steps", save_steps=1, lazy_tokenize=False, dataset_num_proc=2)
    assert words(tmp_path / "out" / "checkpoint-1") == EARLIER | {"segment", "the", "bus", "where", "is", "anna", "2nd"}
    assert warnings == []


def test_a_base_model_without_a_list_gets_none(train, row, tmp_path, warnings):
    train([row("Segment the bus.")] * 4, save_strategy="steps", save_steps=1)
    assert words(tmp_path / "out" / "checkpoint-1") is None and warnings == []


def test_the_list_of_another_mask_tokenizer_is_not_taken(train, world, row, tmp_path):
    other = tmp_path / "tokenizer"
    shutil.copytree(world.mask_tokenizer, other)
    KnownWords(frozenset(EARLIER)).save(other)
    train([row("Segment the bus.")] * 4, mask_tokenizer=other, save_strategy="steps", save_steps=1)
    assert words(tmp_path / "out" / "checkpoint-1") is None


def test_adapters_resumed_runs_and_merged_models_keep_the_list(train, base, row, tmp_path):
    train([row("first")] * 4, model=base, output_dir=tmp_path / "half", **LORA)
    half = tmp_path / "half" / "checkpoint-1"
    assert words(half) == EARLIER | {"first"}
    options = {"model": base, "resume_from_checkpoint": half, "max_steps": 2, "output_dir": tmp_path / "rest"}
    train([row("second")] * 8, **options, **LORA)
    rest = tmp_path / "rest" / "checkpoint-2"
    assert words(rest) == EARLIER | {"first", "second"}
    export(adapters=rest, merge_lora=True, output_dir=tmp_path / "merged", torch_dtype="float32")
    assert words(tmp_path / "merged") == EARLIER | {"first", "second"}


def test_a_stream_writes_no_list_and_says_so_once(train, base, row, tmp_path, warnings):
    train([row("Segment the bus.")] * 8, model=base, streaming=True, save_strategy="steps", save_steps=1)
    assert words(tmp_path / "out" / "checkpoint-1") is None
    (warning,) = warnings
    assert warning.startswith("With --streaming, the words of the training questions are not known")


def test_pretraining_knows_the_words_of_all_roles(world, base, row, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [row("question", "answer <mask>")] * 4)
    options = {"mask_tokenizer": world.mask_tokenizer, "max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    pretrain(model=base, dataset=rows, output_dir=tmp_path / "out", **options)
    assert words(tmp_path / "out" / "checkpoint-1") == EARLIER | {"question", "answer"}


def test_preference_training_adds_its_words(world, base, row, tmp_path):
    from runs import COMMON, flags
    from swift.pipelines import rlhf_main

    rows = write_rows(tmp_path / "rows.jsonl", [{**row("chosen"), "rejected_response": "There is none."}] * 4)
    options = {"rlhf_type": "dpo", "model": base, "mask_tokenizer": world.mask_tokenizer, "dataset": rows}
    saving = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "output_dir": tmp_path / "out"}
    rlhf_main(flags(**{**COMMON, **options, **saving}))
    assert words(tmp_path / "out" / "checkpoint-1") == EARLIER | {"chosen"}


@pytest.mark.parametrize("option", ["streaming", "cached_dataset", "chord_sft_dataset"])
def test_rows_that_are_not_known_beforehand_are_named(warnings, option):
    assert not can_know_training_words(SimpleNamespace(**{option: ["x"]})) and len(warnings) == 1
    assert can_know_training_words(SimpleNamespace(**{option: None})) and len(warnings) == 1


def test_words_are_read_from_messages_with_parts_and_from_none(world):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "the bus"}]},
        {"role": "assistant", "content": "No."},
    ]
    features = Features({"messages": List(Json())})  # as ms-swift stores messages
    rows = Dataset.from_list([{"messages": messages}, {"messages": []}, {"messages": None}], features=features)
    assert find_training_words(rows, every_role=False).words == {"the", "bus"}
    assert find_training_words(rows, every_role=True).words == {"be", "brief", "the", "bus", "no"}
    assert find_training_words(None, every_role=False).words == frozenset()
    scenes = Dataset.from_list([{"messages": each["messages"]} for each in read_rows(world.scenes)])
    assert find_training_words(scenes.shuffle(seed=0), every_role=False).words >= {"segment", "the"}
