"""examples/09_real_base: the base model, its registration with ms-swift, and the rows, all with tiny random parts."""

import json
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from paths import EXAMPLES
from PIL import Image
from pycocotools import mask as coco_mask
from tiny_models import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

FOLDER = EXAMPLES / "09_real_base"
ARCHITECTURE, IMAGE_SIDE, IMAGE_TOKENS = "test_efficientnet", 160, 25
CATEGORIES = [{"id": 1, "name": "dog"}, {"id": 5, "name": "orange"}]


@pytest.fixture
def modules(monkeypatch):
    """The example's modules, imported as run.py imports them."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import base_model
    import photographs
    import questions

    yield base_model, photographs, questions
    for name in ("base_model", "descriptions", "photographs", "questions", "warm_up"):
        sys.modules.pop(name, None)


@pytest.fixture
def base(modules, tmp_path):
    """Folder of a base model of tiny random parts."""
    pytest.importorskip("timm")
    base_model = modules[0]
    folder = tmp_path / "base"
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    tower = base_model.build_vision_tower(ARCHITECTURE)
    base_model.join_parts(LlamaForCausalLM(config), tokenizer, tower, IMAGE_SIDE, 0, folder)
    return folder


def tiny_tokenizer():
    vocabulary = {text: i for i, text in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])}
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[symbol] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def square_photograph(photographs, id, box, category=1, color=(255, 0, 0)):
    """A grey photograph with one object, a rectangle in a colour, so that the image shows where the mask must be."""
    pixels = np.full((60, 80, 3), 128, np.uint8)
    mask = np.zeros((60, 80), bool)
    top, bottom, left, right = box
    mask[top:bottom, left:right] = True
    pixels[mask] = color
    return photographs.Photograph(id, Image.fromarray(pixels), (photographs.Region(mask, category, 0),))


def coco_folder(photographs, folder):
    boxes = [(0, 18, 0, 26), (20, 60, 30, 80), (0, 40, 20, 60)]
    made = [square_photograph(photographs, i, box, CATEGORIES[i % 2]["id"]) for i, box in enumerate(boxes)]
    photographs.write_photographs(folder, made, CATEGORIES)
    return photographs.CocoFolder(folder)


# ----- the base model


def test_plain_transformers_loads_the_base_model(base):
    model, processor = AutoModelForImageTextToText.from_pretrained(base), AutoProcessor.from_pretrained(base)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    assert text == "<|im_start|>user\n<image>\nHi<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(images=Image.new("RGB", (30, 50)), text=text, return_tensors="pt")
    assert (inputs.input_ids == model.config.image_token_id).sum() == IMAGE_TOKENS
    assert inputs.pixel_values.shape == (1, 3, IMAGE_SIDE, IMAGE_SIDE)
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert model.generate(**inputs, max_new_tokens=2, min_new_tokens=2).shape[1] == inputs.input_ids.shape[1] + 2


def test_weights_are_renamed_by_order_and_checked(modules):
    base_model, _, _ = modules
    expected = {"stem.weight": torch.zeros(2, 3), "bn.bias": torch.zeros(2)}
    weights = {"_s.weight": torch.ones(2, 3), "_b.bias": torch.ones(2)}
    assert list(base_model.rename_weights(weights, expected)) == ["stem.weight", "bn.bias"]
    with pytest.raises(ValueError, match="got 1 tensors, expected 2"):
        base_model.rename_weights({"_s.weight": torch.ones(2, 3)}, expected)
    with pytest.raises(ValueError, match=r"got _s.weight of shape \(3, 2\), expected stem.weight of shape \(2, 3\)"):
        base_model.rename_weights({**weights, "_s.weight": torch.ones(3, 2)}, expected)
    with pytest.raises(ValueError, match=r"got _b.weight"):
        base_model.rename_weights({"_s.weight": torch.ones(2, 3), "_b.weight": torch.ones(2)}, expected)


def test_a_missing_package_is_named(modules):
    with pytest.raises(ValueError, match="no_such_package is not installed"):
        modules[0].find_package_file("no_such_package", "*")


def test_weights_of_the_vision_tower_are_those_given(modules):
    timm = pytest.importorskip("timm")
    base_model, _, _ = modules
    torch.manual_seed(1)
    network = timm.create_model(ARCHITECTURE).eval()
    weights = {f"_{i}.{name.rpartition('.')[2]}": value for i, (name, value) in enumerate(network.state_dict().items())}
    tower = base_model.build_vision_tower(ARCHITECTURE, weights).eval()
    pixels = torch.rand(1, 3, IMAGE_SIDE, IMAGE_SIDE)
    with torch.no_grad():
        assert torch.equal(tower(pixels).last_hidden_state, network.forward_features(pixels))


# ----- photographs and rows


def test_changed_photographs_keep_masks_on_their_objects(modules):
    _, photographs, _ = modules
    rng = np.random.default_rng(0)
    photograph = square_photograph(photographs, 1, (10, 40, 15, 55))
    cutouts = photographs.Cutouts()
    cutouts.add(square_photograph(photographs, 2, (0, 50, 0, 60), 5, (0, 255, 0)))
    pasted_objects = 0
    for _ in range(20):
        changed = photographs.paste(photographs.crop(photographs.mirror(photograph), rng), cutouts, rng)
        pixels = np.asarray(changed.image).astype(int)
        colors = {1: (pixels[..., 0] > 190) & (pixels[..., 1] < 60), 5: (pixels[..., 1] > 190) & (pixels[..., 0] < 60)}
        for region in changed.regions:
            shown = colors[region.category_id]
            assert (region.mask & ~shown).sum() == 0
            pasted_objects += region.category_id == 5
        assert not changed.is_whole and changed.image.size == changed.regions[0].mask.shape[::-1]
    assert pasted_objects > 5


def test_the_split_depends_on_the_id_alone(modules):
    _, photographs, _ = modules
    held_out = [id for id in range(2000) if photographs.is_held_out(id)]
    assert 150 < len(held_out) < 250 and photographs.is_held_out(9) == photographs.is_held_out(9)


def test_rows_of_a_photograph_are_joined_to_a_conversation(modules, tmp_path):
    _, photographs, questions = modules
    source = coco_folder(photographs, tmp_path / "coco")
    variants = photographs.make_variants(source, [1, 2, 3], 2, 0)
    photographs.write_photographs(tmp_path / "train", variants, source.categories)
    rows = questions.prepare(tmp_path / "train", tmp_path / "rows.jsonl", ("segment_class", "segment_instances"), 0)
    absent = questions.prepare_negatives(tmp_path / "train", tmp_path / "absent.jsonl", 0)
    assert absent and all(row["masks"] == [] for row in absent)
    words = questions.Words(tmp_path / "train", {"1": ["A dog on the left.", "A dog."]}, 0)
    joined = list(questions.mask_conversations(words, questions.turns_by_image(rows + absent), random.Random(0)))
    assert len(joined) == 6  # three photographs, each also mirrored
    for row in joined:
        texts = [message["content"] for message in row["messages"]]
        assert texts[0].startswith("<image>") and "<image>" not in "".join(texts[1:])
        assert sum(text.count("<mask>") for text in texts) == len(row["masks"]) > 0
        assert texts[-2] == questions.LIST_QUESTION and texts[-1] in ("dog.", "orange.")
        for before in "".join(texts).split("<mask>")[:-1]:
            assert re.search(r"rows \d-\d, columns \d-\d $", before)
    talk = [words.conversation(path)["messages"] for path in words.images]
    texts = [message["content"] for messages in talk for message in messages]
    assert "A dog." in texts and "A dog on the left." not in texts and "Is there an orange?" in "".join(texts)
    assert {f"The dog: rows 0-2, columns {columns}." for columns in ("0-3", "6-9")} < set(texts)  # the second mirrored


def test_descriptions_are_read_as_text_before_photographs(modules, tmp_path):
    _, photographs, questions = modules
    coco_folder(photographs, tmp_path)
    words = questions.Words(tmp_path, {"1": ["A dog."]}, 0)
    row = words.read(next(iter(words.images)), grid=5)
    assert set(row) == {"messages"}  # no image
    first, *others = [message["content"] for message in row["messages"]]
    description, question = first.split("\n")
    assert description == " dog0203" * 2 + " nothing" * 15 and question.startswith("Is there ")
    assert "The dog: rows 0-2, columns 0-3." in others and others[-1] == "dog." and "A dog." not in others


def test_places_are_named_before_each_mask(modules):
    questions, masks = modules[2], np.zeros((3, 60, 80), np.uint8)
    masks[0, 0, 0] = masks[1, 59, 79] = masks[2, 6:12, 8:17] = 1
    first, last, other = (coco_mask.encode(np.asfortranarray(mask)) for mask in masks)
    assert questions.name_place([first]) == "rows 0-0, columns 0-0"
    assert questions.name_place([last]) == "rows 9-9, columns 9-9"
    assert questions.name_place([first, other]) == "rows 0-1, columns 0-2"
    text = questions.add_places("a: <mask>, b: <mask>.", [other, last])
    assert text == "a: rows 1-1, columns 1-2 <mask>, b: rows 9-9, columns 9-9 <mask>."
    assert questions.add_places("There is no dog.", []) == "There is no dog."
    assert questions.add_name("<mask>, <mask>.", "Segment each hot dog.") == "The hot dog: <mask>, <mask>."
    for answer, question in (("There is no dog.", "Segment the dog."), ("dog: <mask>", "Segment all objects.")):
        assert questions.add_name(answer, question) == answer


def test_the_largest_object_of_a_class_is_asked_for(modules, tmp_path):
    _, photographs, questions = modules
    image, masks = Image.new("RGB", (80, 60)), np.zeros((4, 60, 80), bool)
    masks[0, :10, :10] = masks[1, :30, 40:] = masks[2, 40:, :] = masks[3, :2, :2] = True
    regions = [photographs.Region(mask, category, 0) for mask, category in zip(masks, (1, 1, 5, 1), strict=True)]
    photograph = photographs.Photograph(1, image, tuple(regions))
    other = photographs.Photograph(2, image, (regions[2], photographs.Region(masks[1], 1, 1)))  # a crowd of dogs
    tiny = photographs.Photograph(3, image, (regions[3],))  # 4 of 4800 pixels
    photographs.write_photographs(tmp_path, [photograph, other, tiny], CATEGORIES)
    (row,) = questions.ask_for_largest(tmp_path, "dog")
    assert row["images"] == [str(tmp_path / "images" / "000001_1.jpg")]
    assert row["messages"][0]["content"] == "<image>Segment the largest dog."
    assert np.array_equal(coco_mask.decode(row["masks"][0]).astype(bool), masks[1])


# ----- the projector's warm-up


def test_image_tokens_are_to_say_what_is_where(modules, base, tmp_path):
    from descriptions import LENGTH, NOTHING
    from warm_up import Descriptions, WordReader

    coco_folder(modules[1], tmp_path)  # 80 x 60 pixels; the second object covers rows 20 to 59 and columns 30 to 79
    data = Descriptions(tmp_path, AutoProcessor.from_pretrained(base), jitter=False)
    assert len(data) == 3 and data.grid == LENGTH and data.words[-1] == NOTHING
    pixels, words = data[1]
    assert pixels.shape == (3, IMAGE_SIDE, IMAGE_SIDE)
    read = [data.words[word] for word in words]
    nothing, dog = [NOTHING] * LENGTH, ["orange", "3", "9", "3", "9"]
    assert read == [*nothing, *dog * 4]  # the first fifth of the rows ends at 12

    embeddings = torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
    reader = WordReader(embeddings, [[1], [2, 3], [4]])
    words = torch.tensor([[0, 2, 1, 2]])
    exact = reader.words[words]
    torch.testing.assert_close(exact[0, 2], embeddings[2:4].mean(0))
    assert reader(exact).argmax(-1).equal(words)
    assert reader.loss(exact, words) < reader.loss(exact + 0.5, words) < reader.loss(exact.flip(1), words)


def test_of_the_classes_in_a_place_the_one_with_most_of_its_area_is_described(modules, base, tmp_path):
    from warm_up import Descriptions

    photographs, masks = modules[1], np.zeros((2, 100, 100), bool)
    masks[0], masks[1, 20:40, 30:50] = True, True
    regions = [photographs.Region(mask, category["id"], 0) for mask, category in zip(masks, CATEGORIES, strict=True)]
    photograph = photographs.Photograph(1, Image.new("RGB", (100, 100)), tuple(regions))
    photographs.write_photographs(tmp_path, [photograph], CATEGORIES)
    data = Descriptions(tmp_path, AutoProcessor.from_pretrained(base), jitter=False)
    _, words = data[0]
    everywhere, small = ["dog", "0", "9", "0", "9"], ["orange", "2", "3", "3", "4"]
    assert [data.words[word] for word in words] == [*everywhere, *small, *everywhere * 3]


def test_a_grid_that_no_description_fits_is_refused(modules, base, tmp_path):
    from warm_up import Descriptions

    coco_folder(modules[1], tmp_path)
    processor = AutoProcessor.from_pretrained(base)
    processor.image_processor.size["height"] = 64
    with pytest.raises(ValueError, match="image_size: got 2 image tokens in a row, expected a multiple of 5"):
        Descriptions(tmp_path, processor, jitter=False)[0]


def test_the_warm_up_trains_the_projector_and_the_last_stages(modules, base, tmp_path):
    import warm_up
    from descriptions import PARTS

    coco_folder(modules[1], tmp_path / "coco")  # fewer photographs than a batch
    out = tmp_path / "out"
    warm_up.warm_up(base, tmp_path / "coco", tmp_path / "coco", out, frozen_blocks=1, steps=40, seed=0)
    lines = [json.loads(line) for line in (out / "warm_up.jsonl").read_text().splitlines()]
    assert [line.get("step") for line in lines] == [20, 40, None, None] and lines[1]["loss"] < lines[0]["loss"]
    assert set(lines[2]) == {"photographs", *PARTS, "nothing", "recall", "precision"}
    before, after = load_weights(base), load_weights(out)
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed and all("timm_model" in name or "multi_modal_projector" in name for name in changed)
    assert not any("conv_stem" in name or "running" in name for name in changed)
    assert AutoProcessor.from_pretrained(out).patch_size == AutoProcessor.from_pretrained(base).patch_size


# ----- registration with ms-swift

TEMPLATE_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[2])
import register_fast_vlm
from swift import get_processor, get_template
from PIL import Image

processor = get_processor(sys.argv[1])
template = get_template(processor)
image = Image.new("RGB", (30, 50))
messages = [{"role": "user", "content": "<image>Hi"}, {"role": "assistant", "content": "Yes."}]
row = {"messages": messages, "images": [image]}
template.set_mode("train")
encoded = template.encode(row)
labels = [id for id in encoded["labels"] if id != -100]
print(repr(processor.decode(labels)))
template.set_mode("transformers")
ids = template.encode({**row, "messages": messages[:1]})["input_ids"]
message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}
text = processor.apply_chat_template([message], add_generation_prompt=True)
print(ids == processor(images=image, text=text)["input_ids"][0])
"""


def run(*command):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_ms_swift_writes_the_same_tokens_as_the_processor_and_labels_the_answer(base):
    printed = run("-c", TEMPLATE_PROGRAM, base, FOLDER).splitlines()
    assert printed[-2:] == [r"'Yes.<|im_end|>\n'", "True"]


@pytest.mark.slow
def test_the_registered_model_is_trained_on_masks_and_segments(base, modules, tmp_path):
    _, photographs, questions = modules
    coco_folder(photographs, tmp_path / "coco")
    tiny_model().save_pretrained(tmp_path / "mask_tokenizer")
    rows = tmp_path / "rows.jsonl"
    questions.prepare(tmp_path / "coco", rows, ("segment_class",), 0)
    plugins = ("--plugin", "himtok", "--external_plugins", FOLDER / "register_fast_vlm.py")
    statistics = {name: value for name, value in load_weights(base).items() if "running" in name}
    frozen = "model.vision_tower.timm_model.conv_stem"
    run(
        *("-m", "swift.cli.main", "sft", *plugins, "--model", base, "--mask_tokenizer", tmp_path / "mask_tokenizer"),
        *("--dataset", rows, "--output_dir", tmp_path / "out", "--add_version", "false", "--tuner_type", "full"),
        *("--torch_dtype", "float32", "--use_cpu", "true", "--bf16", "false", "--fp16", "false", "--max_steps", 2),
        *("--freeze_vit", "false", "--freeze_aligner", "false", "--freeze_parameters", frozen, "--vit_lr", "1e-3"),
        *("--aligner_lr", "1e-3", "--learning_rate", "1e-3", "--report_to", "none", "--split_dataset_ratio", 0),
    )
    before, after = load_weights(base), load_weights(tmp_path / "out" / "checkpoint-2")
    changed = {
        name for name in before if before[name].shape != after[name].shape or not before[name].equal(after[name])
    }
    assert not changed & (statistics.keys() | {f"{frozen}.weight"})
    assert "model.multi_modal_projector.linear_1.weight" in changed
    assert any(name.startswith("model.vision_tower.timm_model.blocks") for name in changed)
    out = tmp_path / "out.jsonl"
    run(
        *("-m", "swift.cli.main", "infer", *plugins, "--model", tmp_path / "out" / "checkpoint-2"),
        *("--val_dataset", rows, "--result_path", out, "--max_new_tokens", 24, "--stream", "false"),
    )
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(results) == 3 and all("masks" in result for result in results)


def load_weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")
