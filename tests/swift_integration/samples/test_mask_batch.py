"""Samples of every valid form reach the LMM's batch with their codes."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from runs import STAGE_TWO, logged, read_rows, write_rows
from torch import Tensor

from himtok_plugin import MaskTokenizer
from himtok_plugin.lmm.vocabulary import MaskVocabulary
from himtok_plugin.mask_text import codes_to_text
from himtok_plugin.masks import load_mask, to_rle, to_square

IGNORED = -100


@dataclass
class Seen:
    """A batch that the LMM gets."""

    input_ids: Tensor
    labels: Tensor
    vocabulary: MaskVocabulary
    supervised: list[int]
    text: list[str]

    def codes(self, ids: Tensor) -> list[list[int]]:
        """Codes of every mask in order, those that are not labels as None."""
        flat = ids.flatten().tolist()
        starts = (self.input_ids.flatten() == self.vocabulary.start_id).nonzero().flatten().tolist()
        first = self.vocabulary.first_code_id
        return [[i - first if i != IGNORED else None for i in flat[start + 1 : start + 5]] for start in starts]


@pytest.fixture
def batches(monkeypatch):
    """The batches of the runs in this test, in order."""
    from himtok_plugin.swift_integration.training.trainer import MASK_BATCH_KEY, MaskTrainer

    seen = []
    prepare = MaskTrainer._prepare_inputs

    def observed(self, inputs):
        prepared = prepare(self, inputs)
        masks = prepared[MASK_BATCH_KEY][0] if MASK_BATCH_KEY in prepared else None
        supervised = [] if masks is None or masks.supervised is None else masks.supervised.tolist()
        ids = prepared["input_ids"]
        text = self.template.tokenizer.batch_decode(ids)
        seen.append(Seen(ids, prepared["labels"], self.masks.vocabulary, supervised, text))
        return prepared

    monkeypatch.setattr(MaskTrainer, "_prepare_inputs", observed)
    return seen


@pytest.fixture
def train(train):
    """One step over all rows in their order."""

    def run(rows, **options):
        defaults = {
            "per_device_train_batch_size": len(rows),
            "train_dataloader_shuffle": False,
            "dataset_shuffle": False,
            "use_logits_to_keep": False,
        }
        return train(rows, **{**defaults, **options})

    return run


@pytest.fixture(scope="module")
def codes_of(world):
    """Codes of masks by the mask tokenizer itself."""
    tokenizer = MaskTokenizer.from_pretrained(world.mask_tokenizer)

    def encode(*masks):
        squares = np.stack([to_square(load_mask(mask), 16) for mask in masks])
        return tokenizer.encode(torch.from_numpy(squares)).tolist()

    return encode


def test_labels_and_inputs_hold_the_codes_of_the_masks(train, batches, world, codes_of):
    expected = codes_of(world.left, world.right)
    assert expected[0] != expected[1]
    train([world.segment(world.left), world.segment(world.right)])
    (seen,) = batches
    assert seen.codes(seen.input_ids) == seen.codes(seen.labels) == expected


def test_several_masks_in_an_answer(train, batches, world, codes_of):
    train([world.row("<image>All.", "Here <mask> and <mask>.", masks=[world.right, world.left])], **STAGE_TWO)
    (seen,) = batches
    assert seen.codes(seen.labels) == codes_of(world.right, world.left)
    assert seen.supervised == [0, 1]
    assert codes_to_text(codes_of(world.right)[0]) + " and " in seen.text[0]


def test_masks_in_questions_are_read_and_not_supervised(train, batches, world, codes_of):
    rows = [world.row("<image>What is left of <mask>?", "That is <mask>.", masks=[world.right, world.left])]
    result = train(rows, **STAGE_TWO)
    (seen,) = batches
    expected = codes_of(world.right, world.left)
    assert seen.codes(seen.input_ids) == expected
    assert seen.codes(seen.labels) == [[None] * 4, expected[1]]
    assert seen.supervised == [1]
    assert logged(result, "loss_mask_bce")


def test_masks_in_the_system_message_come_first(train, batches, world, codes_of):
    row = world.row("<image>And <mask>?", "It is <mask>.", masks=[world.left, world.right, world.right])
    row["messages"].insert(0, {"role": "system", "content": "This is a bar: <mask>."})
    train([row], **STAGE_TWO)
    (seen,) = batches
    left, right = codes_of(world.left, world.right)
    assert f"This is a bar: {codes_to_text(left)}." in seen.text[0]
    assert seen.codes(seen.input_ids) == [left, right, right] and seen.supervised == [2]


def test_masks_over_several_turns(train, batches, world, codes_of):
    turns = ("<image>First?", "<mask>", "And beside <mask>?", "It is <mask>.", "Thanks.", "Welcome.")
    masks = [world.left, world.left, world.right]
    train([world.row(*turns, masks=masks)], **STAGE_TWO)
    (seen,) = batches
    assert seen.codes(seen.input_ids) == codes_of(*masks)
    assert seen.supervised == [0, 2]


def test_rows_without_masks_beside_rows_with_masks(train, batches, world, codes_of):
    none = world.row("<image>Any?", "There is none.")
    without_column = {key: value for key, value in none.items() if key != "masks"}
    rows = [none, world.segment(world.left), without_column]
    result = train(rows, **STAGE_TWO)
    (seen,) = batches
    assert seen.codes(seen.labels) == codes_of(world.left) and seen.supervised == [0]
    assert logged(result, "loss_mask_bce")


def test_rows_without_any_mask_train_the_lmm_alone(train, world):
    result = train([world.row("<image>Any?", "There is none.")] * 2)
    assert logged(result, "loss") == pytest.approx(logged(result, "loss_next_token"), rel=1e-4)
    assert not logged(result, "loss_mask_bce")


def test_rows_without_images_train_as_text(train, world):
    rows = [{"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]}]
    assert logged(train(rows), "loss_next_token")


def test_literal_mask_text_in_a_row_stays_unchanged(train, batches, world, codes_of):
    written = codes_to_text([1, 2, 3])
    rows = [world.row(f"<image>Improve {written}.", "Better: <mask>.", masks=[world.left])]
    train(rows, **STAGE_TWO)
    (seen,) = batches
    assert written in seen.text[0]
    assert codes_to_text(codes_of(world.left)[0]) in seen.text[0]
    assert seen.supervised == [0]


@pytest.mark.parametrize("kind", ["path", "rle", "polygons", "zero_one_png"])
def test_every_kind_of_mask_source(train, batches, world, codes_of, tmp_path, kind):
    polygons = {"polygons": [[4, 8, 20, 8, 20, 40, 4, 40]], "size": [48, 64]}
    ones = tmp_path / "ones.png"
    Image.fromarray(world.left.astype(np.uint8)).save(ones)
    sources = {
        "path": str(world.mask_file),
        "rle": to_rle(world.left),
        "polygons": polygons,
        "zero_one_png": str(ones),
    }
    assert np.array_equal(load_mask(polygons), world.left)
    train([world.segment(sources[kind])])
    assert batches[0].codes(batches[0].labels) == codes_of(world.left)


def test_kinds_of_mask_sources_mix_within_a_file_and_a_row(train, batches, world, codes_of):
    polygons = {"polygons": [[4, 8, 20, 8, 20, 40, 4, 40]], "size": [48, 64]}
    rows = [
        world.segment(str(world.mask_file)),
        world.segment(world.right),
        world.segment(polygons),
        world.row("<image>All.", "<mask><mask>", masks=[str(world.mask_file), to_rle(world.right)]),
    ]
    train(rows)
    masks = [world.left, world.right, world.left, world.left, world.right]
    assert batches[0].codes(batches[0].labels) == codes_of(*masks)


def test_streamed_rows_mix_kinds_too(train, batches, world, codes_of):
    rows = [world.segment(str(world.mask_file)), world.segment(str(world.mask_file))]
    train(rows, streaming=True)
    assert batches[0].codes(batches[0].labels) == codes_of(world.left, world.left)


def test_relative_paths_start_from_the_image_root(train, batches, world, codes_of, monkeypatch):
    row = {**world.segment(world.mask_file.name), "images": [world.image.name]}
    monkeypatch.setenv("ROOT_IMAGE_DIR", str(world.root))
    train([row])
    assert batches[0].codes(batches[0].labels) == codes_of(world.left)


def test_relative_paths_start_from_the_working_directory(train, batches, world, codes_of, monkeypatch):
    row = {**world.segment(world.mask_file.name), "images": [world.image.name]}
    monkeypatch.chdir(world.root)
    train([row])
    assert batches[0].codes(batches[0].labels) == codes_of(world.left)


def test_boxes_and_masks_stand_side_by_side(train, batches, world, codes_of):
    row = world.row("<image>Segment <ref-object> in <bbox>.", "<mask>", masks=[world.left])
    row["objects"] = {"ref": ["the bar"], "bbox": [[4, 8, 20, 40]]}
    train([row])
    (seen,) = batches
    assert "the bar" in seen.text[0] and "[" in seen.text[0] and "<bbox>" not in seen.text[0]
    assert seen.codes(seen.labels) == codes_of(world.left)


def test_codes_in_a_half_precision_step_equal_those_in_single_precision(train, batches, world, codes_of):
    """In bfloat16 one square in twenty gets other codes."""
    rows = [row for row in read_rows(world.scenes) if row["masks"]]
    train(rows, bf16=True, fp16=False, use_cpu=True)
    assert batches[0].codes(batches[0].labels) == codes_of(*(mask for row in rows for mask in row["masks"]))


@pytest.mark.parametrize("stage", [2, 3])
def test_codes_made_offline_are_used_as_they_are(train, batches, world, monkeypatch, stage):
    monkeypatch.setattr(MaskTokenizer, "encode", lambda *_: pytest.fail("the encoder was called"))
    given = [[1, 2, 3, 4], [11, 0, 0, 5]]
    rows = [world.row("<image>All.", "<mask> <mask>", masks=[world.left, world.right], mask_codes=given)]
    result = train(rows, **(STAGE_TWO if stage == 2 else {}))
    assert batches[0].codes(batches[0].labels) == given
    assert bool(logged(result, "loss_mask_bce")) is (stage == 2)


def test_stage_three_with_offline_codes_opens_no_mask_file(train, batches, world):
    rows = [world.segment("/nowhere/mask.png", mask_codes=[[1, 2, 3, 4]])]
    train(rows)
    assert batches[0].codes(batches[0].labels) == [[1, 2, 3, 4]]


@pytest.mark.parametrize("stage", [STAGE_TWO, {}], ids=["stage 2", "stage 3"])
def test_rows_with_and_without_offline_codes_mix(train, batches, world, codes_of, stage):
    rows = [world.segment(world.left, mask_codes=[[1, 2, 3, 4]]), world.segment(world.right)]
    train(rows, **stage)
    assert batches[0].codes(batches[0].labels) == [[1, 2, 3, 4], *codes_of(world.right)]


def reference_row(image: str, mask: str, **columns) -> dict:
    placeholder = "<|mt_start|>" + "<|mt_0|>" * 32 + "<|mt_end|>"
    return {
        "image": image,
        "mask": mask,
        "conversations": [
            {"from": "human", "value": "<image>\nSegment <ref>road</ref>."},
            {"from": "gpt", "value": f"The mask appears at {placeholder}."},
        ],
        **columns,
    }


def test_rows_of_the_reference_train_as_they_are(train, batches, world, codes_of, monkeypatch):
    monkeypatch.setenv("ROOT_IMAGE_DIR", str(world.root))
    result = train([reference_row(world.image.name, world.mask_file.name)] * 2, **STAGE_TWO)
    (seen,) = batches
    assert seen.codes(seen.labels) == codes_of(world.left) * 2
    assert "The mask appears at <|mt_start|>" in seen.text[0]
    assert logged(result, "loss_mask_bce")


def test_rows_of_the_reference_stream(train, batches, world, codes_of, monkeypatch):
    monkeypatch.setenv("ROOT_IMAGE_DIR", str(world.root))
    train([reference_row(world.image.name, world.mask_file.name)] * 2, streaming=True)
    assert batches[0].codes(batches[0].labels) == codes_of(world.left) * 2


def uneven_rows(world) -> list[dict]:
    return [
        world.segment(world.left),
        world.row("<image>All of them, please, and tell me more.", "<mask> and <mask>.", masks=[world.right] * 2),
        world.row("<image>Any?", "There is none."),
        world.row("<image>Beside <mask>?", "It is <mask>, I think.", masks=[world.left, world.right]),
    ]


def use_all_levels() -> dict:
    """Mask losses without random levels: all three levels of four mask tokens."""
    return {**STAGE_TWO, "num_coarse_levels": 3, "max_grad_norm": 1e9}


LOSSES = ("loss", "grad_norm", "loss_mask_bce", "loss_mask_dice", "loss_mask_hierarchical")


@pytest.mark.parametrize(
    "options",
    [{"padding_side": "left"}, {"use_logits_to_keep": True}, {"use_logits_to_keep": True, "padding_side": "left"}],
    ids=str,
)
def test_layout_of_the_batch_changes_no_loss(train, world, options):
    plain = train(uneven_rows(world), **use_all_levels())
    other = train(uneven_rows(world), **use_all_levels(), **options)
    for key in LOSSES:
        assert logged(other, key) == pytest.approx(logged(plain, key), rel=1e-4), key


def test_trimmed_logits_are_those_of_the_same_masks(train, world, monkeypatch):
    """The probabilities that reach the mask loss, with all logits and with those of labelled positions only."""
    from himtok_plugin.hierarchical_loss import HierarchicalMaskLoss

    seen = []
    forward = HierarchicalMaskLoss.forward

    def observed(self, tokenizer, probabilities, target, **options):
        seen.append((probabilities.detach(), target))
        return forward(self, tokenizer, probabilities, target, **options)

    monkeypatch.setattr(HierarchicalMaskLoss, "forward", observed)
    for keep in (False, True):
        train(uneven_rows(world), use_logits_to_keep=keep, **STAGE_TWO)
    (full, targets), (trimmed, same_targets) = seen
    assert full.shape == (4, 4, 12)
    torch.testing.assert_close(trimmed, full, rtol=1e-4, atol=1e-6)
    assert torch.equal(targets, same_targets)
    expected = [to_square(mask, 16) for mask in (world.left, world.right, world.right, world.right)]
    assert np.abs(targets.numpy() - np.stack(expected)).max() < 1 / 255


@pytest.mark.parametrize("feature", ["padding_free", "packing"])
@pytest.mark.parametrize("keep", [False, True])
def test_rows_in_one_sequence_have_the_loss_of_rows_in_a_batch(train, world, monkeypatch, feature, keep):
    """ms-swift requires flash attention, which needs a GPU; with sdpa, transformers masks by position ids as well."""
    from swift.arguments import SftArguments

    plain = train(uneven_rows(world), **use_all_levels())
    monkeypatch.setattr(
        SftArguments, "_check_padding_free", lambda self: self.packing and setattr(self, "padding_free", True)
    )
    options = {feature: True, "use_logits_to_keep": keep}
    if feature == "packing":
        options |= {"packing_length": 1000, "per_device_train_batch_size": 1}
    packed = train(uneven_rows(world), **use_all_levels(), **options)
    for key in LOSSES:
        assert logged(packed, key) == pytest.approx(logged(plain, key), rel=1e-3), key


def test_masks_belong_to_the_image_file_where_the_template_shrinks_images(train, batches, world, codes_of):
    train([world.segment(world.left)], max_pixels=32 * 32)
    assert batches[0].codes(batches[0].labels) == codes_of(world.left)


def test_unknown_columns_of_the_dataset_are_ignored(train, batches, world, codes_of):
    train([world.segment(world.left, source="coco", number=3)])
    assert batches[0].codes(batches[0].labels) == codes_of(world.left)


def test_masks_of_validation_rows_are_encoded_as_well(train, world, tmp_path):
    val = write_rows(tmp_path / "val.jsonl", [world.segment(world.left)] * 2)
    options = {"val_dataset": val, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2}
    result = train([world.segment(world.left)] * 2, **options, **use_all_levels())
    assert json.dumps(result["log_history"])
    assert logged(result, "eval_loss_mask_bce")
