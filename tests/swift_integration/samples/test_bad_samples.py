"""Bad samples: one clear error with row, field and value; `--strict` decides whether it stops the run."""

import logging
import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image
from runs import LMM, STAGE_TWO, export, infer, logged, pretrain, read_rows, sft, write_rows
from tiny_models import released_state, tiny_model

from himtok_plugin.masks import to_rle


@pytest.fixture
def log(tmp_path):
    """What ms-swift logs, also in the processes that it forks for preprocessing."""
    handler = logging.FileHandler(tmp_path / "log")
    logger = logging.getLogger("swift")
    logger.addHandler(handler)
    yield tmp_path / "log"
    logger.removeHandler(handler)
    handler.close()


@pytest.fixture
def bad_rows(world, tmp_path):
    """Name to (row, pattern of the message)."""
    text = tmp_path / "no_image.png"
    text.write_text("This is no image.")
    cut = tmp_path / "cut.png"
    cut.write_bytes(world.image.read_bytes()[:60])
    small = tmp_path / "small.png"
    Image.fromarray(np.ones((10, 12), np.uint8)).save(small)
    labels = tmp_path / "labels.png"
    Image.fromarray(np.arange(48 * 64, dtype=np.uint8).reshape(48, 64) % 5).save(labels)
    segment, left = world.segment, world.left
    twice = ["<image>Segment it.", "Here <mask> and <mask>."]
    wrong_rle = {"size": [48, 64], "counts": "abc"}
    outside = {"polygons": [[0, 0, 200, 0, 200, 20]], "size": [48, 64]}
    image = {"messages": segment(left)["messages"], "masks": [to_rle(left)]}
    codes = {"mask_codes": [[1, 2, 3, 12]]}
    boxed = ["<image>Where is it?", "<bbox>"]

    def box(number) -> dict:
        return {"ref": [], "bbox": [[1, 2, number, 9]]}

    return {
        "missing image": ({**image, "images": ["/nowhere/a.png"]}, r"images.*/nowhere/a\.png"),
        "text as image": ({**image, "images": [str(text)]}, r"images.*no_image\.png"),
        "cut image": ({**image, "images": [str(cut)]}, r"images.*cut\.png"),
        "missing mask": (segment("/nowhere/m.png"), r"masks\[0\]: mask '/nowhere/m\.png' cannot be read"),
        "text as mask": (segment(str(text)), r"masks\[0\]: mask '.*no_image\.png' cannot be read"),
        "map of labels": (segment(str(labels)), r"masks\[0\]: mask '.*labels\.png' has the values 0, 1, 2, 3"),
        "other size": (segment(str(small)), r"masks\[0\]: .*\(10, 12\).*expected \(48, 64\), the size of its image"),
        "second of another size": (
            world.row(*twice, masks=[left, str(small)]),
            r"masks\[1\]: .*\(10, 12\).*expected \(48, 64\)",
        ),
        "wrong RLE": (segment(wrong_rle), r"masks\[0\]: counts"),
        "polygon outside": (
            segment(outside),
            r"masks\[0\]: polygons\[0\] reaches from \(0, 0\) to \(200, 20\), far outside",
        ),
        "neither RLE nor polygons": (segment({"size": [48, 64]}), r"masks\[0\]: mask has the keys \['size'\]"),
        "number as mask": (segment(7), r"masks\[0\]: mask is 7: expected a path"),
        "too few masks": (world.row(*twice, masks=[left]), "messages hold 2 <mask>, masks holds 1"),
        "too many masks": (
            world.row("<image>Hi.", "<mask>", masks=[left] * 3),
            "messages hold 1 <mask>, masks holds 3",
        ),
        "code out of range": (segment(left, **codes), r"mask_codes\[0\] holds 12, expected integers 0 to 11"),
        "negative code": (segment(left, mask_codes=[[1, 2, -3, 4]]), r"mask_codes\[0\] holds -3"),
        "wrong number of codes": (segment(left, mask_codes=[[1, 2, 3]]), r"mask_codes\[0\] has 3 codes, expected 4"),
        "box of huge numbers": (world.row(*boxed, masks=[], objects=box(1e308)), r"objects\.bbox\[0\]: got .*1e\+308"),
        "codes of too many masks": (
            segment(left, mask_codes=[[1, 2, 3, 4]] * 2),
            "mask_codes holds 2 entries, masks holds 1",
        ),
    }


CASES = [
    "missing image",
    "text as image",
    "cut image",
    "missing mask",
    "text as mask",
    "map of labels",
    "other size",
    "second of another size",
    "wrong RLE",
    "polygon outside",
    "neither RLE nor polygons",
    "number as mask",
    "too few masks",
    "too many masks",
    "code out of range",
    "negative code",
    "wrong number of codes",
    "codes of too many masks",
    "box of huge numbers",
]


def one_line(error: BaseException) -> str:
    message = str(error)
    assert "\n" not in message and len(message) < 600
    return message


@pytest.mark.parametrize("case", CASES)
def test_bad_row_stops_a_strict_run_with_its_file_and_number(train, world, bad_rows, case):
    row, pattern = bad_rows[case]
    good = world.segment(world.right)
    if "mask_codes" in row:
        good["mask_codes"] = [[1, 2, 3, 4]]
    with pytest.raises(ValueError) as error:
        train([good, good, row], per_device_train_batch_size=3, **STAGE_TWO)
    assert re.search(rf"^\S+/rows\.jsonl: row 3: {pattern}", one_line(error.value)), error.value


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_row_of_the_second_file_is_named_with_it(train, world, tmp_path, streaming):
    good, bad = world.segment(world.left), world.segment("/nowhere/m.png")
    files = [
        write_rows(tmp_path / name, rows) for name, rows in (("a.jsonl", [good] * 2), ("b.jsonl", [good, bad, good]))
    ]
    with pytest.raises(ValueError, match=r"/b\.jsonl: row 2: masks\[0\]: mask '/nowhere"):
        train(dataset=files, streaming=streaming, max_steps=2)


@pytest.mark.parametrize("case", ["missing image", "text as mask", "other size", "too few masks", "number as mask"])
@pytest.mark.parametrize("lazy", [True, False])
def test_bad_row_is_skipped_with_its_message_by_a_run_that_is_not_strict(train, world, bad_rows, log, case, lazy):
    row, pattern = bad_rows[case]
    good = world.segment(world.right)
    result = train([good, good, row, good], strict=False, lazy_tokenize=lazy, **STAGE_TWO)
    assert logged(result, "loss_mask_bce")
    assert re.search(rf"rows\.jsonl: row 3: {pattern}", log.read_text())


def test_mask_column_that_is_not_a_list_is_refused(train, world):
    rows = [{**world.segment(world.left), "masks": 3}]
    with pytest.raises(ValueError, match=r"rows\.jsonl: row 1: masks: got 3, expected a list"):
        train(rows)


def test_sample_with_a_truncated_mask_is_skipped_with_a_message(train, world, log):
    cut = world.row("<image>Segment " + "it and " * 40, "<mask>", masks=[world.left])
    rows = [world.segment(world.right), cut, world.segment(world.right)]
    options = {"max_length": 60, "truncation_strategy": "right", "strict": False}
    result = train(rows, lazy_tokenize=True, per_device_train_batch_size=3, **options, **STAGE_TWO)
    assert logged(result, "loss_mask_bce")
    assert "row 2: max_length=60 truncates a mask" in log.read_text()


def test_row_with_a_mask_is_never_split_in_two(world, tmp_path):
    """ms-swift splits samples in pre-training only."""
    row = world.row("<image>Segment " + "it and " * 40, "<mask>", masks=[world.left])
    options = {"max_length": 60, "truncation_strategy": "split", "lazy_tokenize": False, **LMM, **STAGE_TWO}
    with pytest.raises(ValueError, match="truncation_strategy: got 'split' with masks"):
        pretrain(
            model=world.lmm,
            mask_tokenizer=world.mask_tokenizer,
            dataset=write_rows(tmp_path / "rows.jsonl", [row]),
            output_dir=tmp_path / "out",
            **options,
        )


@pytest.mark.parametrize("case", ["missing mask", "other size", "polygon outside", "wrong RLE"])
def test_bad_mask_in_a_question_fails_its_row_of_inference(stage_two, world, bad_rows, tmp_path, case):
    row, pattern = bad_rows[case]
    question = world.row("<image>What is <mask>?", "It is one.", masks=row["masks"])
    rows = write_rows(tmp_path / "questions.jsonl", [world.row("<image>Hi.", "Hello."), question])
    with pytest.raises(SystemExit, match="error: 1 of 2 rows could not be answered"):
        infer(rows, tmp_path / "out.jsonl", model=stage_two[1])
    answered, failed = read_rows(tmp_path / "out.jsonl")
    assert answered["response"] and "error" not in answered
    assert re.search(rf"questions\.jsonl: row 2: {pattern}", failed["error"])


@pytest.mark.parametrize("case", ["missing mask", "wrong RLE", "polygon outside"])
def test_bad_row_of_stage_one_is_named(world, bad_rows, tmp_path, case):
    row, pattern = bad_rows[case]
    rows = write_rows(tmp_path / "masks.jsonl", [{"masks": [to_rle(world.left)]}, {"masks": row["masks"]}])
    with pytest.raises(ValueError) as error:
        sft(model=world.mask_tokenizer, dataset=rows, output_dir=tmp_path / "out", max_steps=1)
    assert re.search(rf"masks\.jsonl: row 2: {pattern}", one_line(error.value)), error.value


def test_mask_tokenizer_with_another_codebook_size_than_the_vocabulary_is_refused(train, stage_two, world, tmp_path):
    for size in (10, 14):
        tiny_model(codebook_size=size, codebook_ready=True).save_pretrained(tmp_path / "other")
        with pytest.raises(ValueError, match="text tokenizer (lacks 2 of the 16 mask tokens|has 12 mask codes)"):
            train([world.segment(world.left)], model=stage_two[1], mask_tokenizer=tmp_path / "other")


def test_missing_mask_tokenizer_is_reported_with_the_option(train, world):
    with pytest.raises(ValueError, match="mask_tokenizer: got none, .* expected --mask_tokenizer DIR"):
        train([world.segment(world.left)], mask_tokenizer=None)


@pytest.mark.parametrize("with_weights", [True, False])
def test_mask_tokenizer_without_a_codebook_is_refused(train, world, tmp_path, with_weights):
    fresh = tmp_path / "fresh"
    tiny_model().save_pretrained(fresh)
    with pytest.raises(ValueError, match=r"mask_tokenizer: '.*/fresh' has codebook_ready=false in its config\.json"):
        if with_weights:
            train([world.segment(world.left)], mask_tokenizer=fresh)
        else:
            rows = write_rows(tmp_path / "rows.jsonl", [world.segment(world.left)])
            export(
                model=world.lmm,
                mask_tokenizer=fresh,
                dataset=rows,
                to_cached_dataset=True,
                output_dir=tmp_path / "cached",
            )


def test_folder_without_a_mask_tokenizer_is_refused(train, world, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds neither a mask tokenizer's config.json"):
        train([world.segment(world.left)], mask_tokenizer=tmp_path / "empty")


class Malicious:
    def __reduce__(self):
        return print, ("code in a pickle was run",)


def test_file_without_weights_is_refused(train, world, tmp_path):
    file = tmp_path / "himtok.pth"
    file.write_text("no weights")
    with pytest.raises(ValueError, match=r"himtok\.pth: got a text \(no weights\)"):
        train([world.segment(world.left)], mask_tokenizer=file)
    torch.save({"some": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match=r"himtok\.pth: no key 'encoder"):
        train([world.segment(world.left)], mask_tokenizer=file)


def test_pickle_with_code_in_it_is_refused_and_not_run(train, world, tmp_path, capsys):
    file = tmp_path / "himtok.pth"
    for save in (lambda: torch.save({"model": Malicious()}, file), lambda: file.write_bytes(pickle.dumps(Malicious()))):
        save()
        with pytest.raises(ValueError, match="not a weights file of plain tensors"):
            train([world.segment(world.left)], mask_tokenizer=file)
    assert "code in a pickle was run" not in capsys.readouterr().out


def test_released_weights_train_without_conversion(train, world, tmp_path):
    sizes = {"pixel_channels": 32, "pixel_groups": 32, "encoder_heads": 1, "decoder_heads": 1}
    torch.save(released_state(tiny_model(latent_layout="legacy_reshape", **sizes)), tmp_path / "himtok.pth")
    result = train([world.segment(world.left)], mask_tokenizer=tmp_path / "himtok.pth", **STAGE_TWO)
    assert logged(result, "loss_mask_bce")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("mask_loss_weight", -1, "mask_loss_weight: got -1.0, expected"),
        ("num_coarse_levels", 99, "num_coarse_levels: got 99, expected"),
        ("mask_threshold", 2, "mask_threshold: got 2.0, expected"),
    ],
)
def test_option_out_of_range_stops_before_anything_is_loaded(train, world, option, value, message):
    with pytest.raises(ValueError, match=message):
        train([world.segment(world.left)], **{option: value})


def test_more_mask_tokens_than_the_mask_tokenizer_has_are_refused(stage_two, world, tmp_path):
    with pytest.raises(ValueError, match="num_mask_tokens: got 5, expected at most .* 4"):
        infer(world.scenes, tmp_path / "out.jsonl", model=stage_two[1], num_mask_tokens=5)
