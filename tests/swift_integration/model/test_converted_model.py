"""A converted chat model is a base like any other: `swift infer`, LoRA, full training, `swift deploy`."""

import json

import openai
import pytest
from chat_models import MASK_TOKENS, SYSTEM, chat_model, internlm2_files, train_sentencepiece, with_tokenizer
from PIL import Image
from runs import LMM, STAGE_TWO, export, infer, run_swift, sft
from servers import data_url, deployed, png
from swift.arguments import InferArguments
from transformers import AutoProcessor

from himtok_plugin import Segmenter, cli
from himtok_plugin.internvl_chat.chat_prompt import PROMPTS, format_prompt
from himtok_plugin.masks import load_mask
from himtok_plugin.swift_integration.options.unconverted_checkpoints import RELEASED_MODEL, refuse_unconverted

QUESTION = format_prompt("segmentation", "road")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    root = tmp_path_factory.mktemp("chat_model")
    source = with_tokenizer(internlm2_files(train_sentencepiece(root))).write(root / "source", shards=2)
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", str(source), str(root / "converted")])
    assert not stop.value.code
    return root / "converted"


def assert_masks(rows):
    """One mask each, as long as the checkpoint says, of the size of the image."""
    for row in rows:
        (mask,) = row["masks"]
        assert mask["complete"] and 1 <= len(mask["codes"]) <= MASK_TOKENS
        with Image.open(row["images"][0]["path"]) as image:
            assert load_mask(mask).shape == image.size[::-1]
        assert 0 < mask["score"] < 1


ONE_MASK = {"min_masks": 1, "max_masks": 1}


def test_swift_infer_segments(converted, world, tmp_path):
    assert_masks(infer(world.scenes, tmp_path / "out.jsonl", model=converted, **ONE_MASK))


def test_ms_swift_writes_the_prompt_and_tokens_of_the_authors(converted, world):
    segmenter = Segmenter.from_pretrained(
        converted, device="cpu", torch_dtype="float32", question=PROMPTS["segmentation"]
    )
    template = segmenter.engine.template
    encoded = template.encode(
        {"messages": [{"role": "user", "content": f"<image>{QUESTION}"}], "images": [str(world.image)]}
    )
    processor = AutoProcessor.from_pretrained(converted)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=Image.open(world.image), text=text, add_special_tokens=False, return_tensors="pt")
    assert encoded["input_ids"] == inputs.input_ids[0].tolist()
    assert encoded["pixel_values"].shape == inputs.pixel_values.shape
    assert (encoded["pixel_values"] - inputs.pixel_values).abs().max() < 1e-5
    assert encoded["input_ids"][0] == 1 and SYSTEM in text
    result = segmenter(world.image, "road")
    assert result.masks.shape[1:] == (48, 64)


def test_settings_of_the_checkpoint_are_defaults_of_the_run(converted):
    found = InferArguments(model=str(converted))
    assert (found.system, found.mask_decoding, found.num_mask_tokens) == (SYSTEM, "soft", MASK_TOKENS)
    given = InferArguments(model=str(converted), system="Be brief.", mask_decoding="hard", num_mask_tokens=2)
    assert (given.system, given.mask_decoding, given.num_mask_tokens) == ("Be brief.", "hard", 2)


def test_other_models_have_no_such_settings(world):
    found = InferArguments(model=str(world.lmm), mask_tokenizer=str(world.mask_tokenizer))
    assert (found.system, found.mask_decoding, found.num_mask_tokens) == (None, "soft", None)


def test_checkpoint_with_another_mask_temperature_is_refused(converted, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    for path in converted.iterdir():
        (folder / path.name).symlink_to(path)
    settings = json.loads((converted / "generation_config.json").read_text())
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").write_text(json.dumps({**settings, "mask_temperature": 1.0}))
    with pytest.raises(ValueError, match="mask_temperature: got 1.0, expected 0.5"):
        InferArguments(model=str(folder))


def test_lora_trains_infers_and_merges(converted, world, tmp_path):
    sft(
        model=converted,
        tuner_type="lora",
        lora_rank=4,
        dataset=world.scenes,
        output_dir=tmp_path / "lora",
        save_strategy="steps",
        save_steps=2,
        **STAGE_TWO,
    )
    adapter = tmp_path / "lora" / "checkpoint-2"
    assert (adapter / "mask_tokenizer" / "model.safetensors").is_file()
    assert json.loads((adapter / "args.json").read_text())["system"] == SYSTEM
    rows = infer(world.scenes, tmp_path / "out.jsonl", adapters=adapter, **ONE_MASK)
    assert_masks(rows)
    export(adapters=adapter, merge_lora=True, output_dir=tmp_path / "merged", torch_dtype="float32")
    merged = infer(world.scenes, tmp_path / "merged.jsonl", model=tmp_path / "merged", **ONE_MASK)
    assert [row["response"] for row in merged] == [row["response"] for row in rows]
    assert InferArguments(model=str(tmp_path / "merged")).system == SYSTEM


def test_full_training_keeps_the_settings(converted, world, tmp_path):
    sft(
        model=converted,
        dataset=world.scenes,
        output_dir=tmp_path / "full",
        save_strategy="steps",
        save_steps=2,
        **LMM,
        **STAGE_TWO,
    )
    checkpoint = tmp_path / "full" / "checkpoint-2"
    found = InferArguments(model=str(checkpoint))
    assert (found.system, found.num_mask_tokens) == (SYSTEM, MASK_TOKENS)
    settings = json.loads((checkpoint / "generation_config.json").read_text())
    assert (settings["mask_decoding"], settings["mask_temperature"]) == ("soft", 0.5)
    assert_masks(infer(world.scenes, tmp_path / "out.jsonl", model=checkpoint, **ONE_MASK))


@pytest.mark.slow
def test_swift_deploy_answers_with_segments(converted, tmp_path):
    url = data_url(png(48, 64))
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    with (
        deployed(tmp_path, model=converted, served_model_name="himtok", **ONE_MASK) as address,
        openai.OpenAI(base_url=address, api_key="x", max_retries=0) as client,
    ):
        answer = client.chat.completions.create(
            model="himtok", messages=[{"role": "user", "content": content}], max_tokens=48, temperature=0
        )
    (segment,) = answer.choices[0].message.segments
    assert segment["size"] == [48, 64] and segment["complete"] and 1 <= len(segment["codes"]) <= MASK_TOKENS


def test_published_model_is_refused_before_any_download():
    with pytest.raises(ValueError, match=f"himtok convert {RELEASED_MODEL} InternVL2_5-HiMTok-8B-hf"):
        InferArguments(model=RELEASED_MODEL)


@pytest.mark.slow
def test_the_published_model_is_refused_with_the_command_that_converts_it(tmp_path):
    done = run_swift("infer", "--plugin", "himtok", "--model", RELEASED_MODEL, cwd=tmp_path)
    assert done.returncode != 0
    assert f"himtok convert {RELEASED_MODEL} InternVL2_5-HiMTok-8B-hf" in done.stderr


def test_downloaded_published_model_is_refused_and_others_are_not(converted, tmp_path):
    in_shards = chat_model().write(tmp_path / "one", shards=2)
    beside = chat_model(with_masks=False).write(tmp_path / "two")
    (beside / "himtok.pth").touch()
    for folder in (in_shards, beside):
        with pytest.raises(ValueError, match=f"himtok convert {folder}"):
            refuse_unconverted(str(folder))
    refuse_unconverted(str(chat_model(with_masks=False).write(tmp_path / "three")))
    for name in (str(converted), "OpenGVLab/InternVL2_5-8B", "", None):
        refuse_unconverted(name)
