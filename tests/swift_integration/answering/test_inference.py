"""`swift infer`: masks in every result, PNG files, masks in questions, the interactive mode."""

import io
import itertools
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from runs import flags, infer, read_rows, sft, write_rows

from himtok_plugin import MaskTokenizer
from himtok_plugin.evaluation.scoring import score_results
from himtok_plugin.mask_text import text_to_codes
from himtok_plugin.masks import from_square, load_mask, to_square

KEYS = ["size", "counts", "codes", "score", "complete"]


@pytest.fixture(scope="module")
def results(stage_two, world, tmp_path_factory):
    """(result rows, folder of pictures, result file) of all scenes in batches of 4."""
    root = tmp_path_factory.mktemp("inference")
    file = root / "out.jsonl"
    rows = infer(world.scenes, file, model=stage_two[1], mask_dir=root / "pictures", max_batch_size=4)
    return rows, root / "pictures", file


@pytest.fixture
def run(stage_two, world, tmp_path):
    number = itertools.count()  # ms-swift appends to a result file that is there

    def run(rows=None, **options):
        rows = world.scenes if rows is None else write_rows(tmp_path / "rows.jsonl", rows)
        defaults = {"model": stage_two[1], "max_batch_size": 8}
        return infer(rows, tmp_path / f"out{next(number)}.jsonl", **{**defaults, **options})

    return run


def masks_alike(one: list[dict], other: list[dict]) -> bool:
    return [(m["codes"], m["counts"]) for m in one] == [(m["codes"], m["counts"]) for m in other] and all(
        a["score"] == pytest.approx(b["score"], abs=1e-4) for a, b in zip(one, other, strict=True)
    )


def test_every_mask_of_a_response_is_in_the_row_in_order(results):
    rows, _, _ = results
    assert len(rows) == 16
    assert max(len(row["masks"]) for row in rows) >= 2
    for row in rows:
        spans = text_to_codes(row["response"], 12, 4)
        assert [mask["codes"] for mask in row["masks"]] == [span.codes for span in spans]
        assert "<|mt_" in row["response"] or not row["masks"]
        for mask in row["masks"]:
            assert list(mask) == KEYS
            assert mask["size"] == [64, 64] and mask["complete"] and 0 <= mask["score"] <= 1


def test_results_have_the_true_masks_too(results, world):
    for row, source in zip(results[0], read_rows(world.scenes), strict=True):
        assert len(row["target_masks"]) == len(source["masks"])
        for target, mask in zip(row["target_masks"], source["masks"], strict=True):
            assert np.array_equal(load_mask(target), load_mask(mask))


def test_answer_without_a_mask_has_none(results):
    empty = [row for row in results[0] if "<|mt_" not in row["response"]]
    assert empty and all(row["masks"] == [] for row in empty)


def test_ms_swifts_own_keys_stay(results):
    for row in results[0]:
        assert {"response", "labels", "messages", "images"} <= set(row)
        assert row["messages"][-1] == {"role": "assistant", "content": row["response"]}


def test_pictures_of_masks_equal_the_encoded_ones(results):
    rows, folder, _ = results
    expected = set()
    for number, row in enumerate(rows):
        for i, mask in enumerate(row["masks"]):
            name = f"{number:05d}_mask{i}.png"
            expected.add(name)
            with Image.open(folder / name) as picture:
                assert set(np.unique(np.asarray(picture.convert("L")))) <= {0, 255}
            assert np.array_equal(load_mask(folder / name), load_mask({k: mask[k] for k in ("size", "counts")}))
        if row["masks"]:
            expected.add(f"{number:05d}_overlay.png")
            with Image.open(folder / f"{number:05d}_overlay.png") as picture:
                assert (picture.height, picture.width) == (64, 64)
    assert {path.name for path in folder.iterdir()} == expected


def test_pictures_of_an_earlier_run_stay(run, world, tmp_path):
    """As in a second dialogue, or in a resumed run."""
    rows, folder = read_rows(world.scenes), tmp_path / "pictures"
    first = run(rows[:3], mask_dir=folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "rank1_00099_mask0.png").write_bytes(b"another process's")
    (folder / "99999_notes.txt").write_text("someone's own")
    second = run(rows[3:6], mask_dir=folder)
    masks = [mask for row in (*first, *second) for mask in row["masks"]]
    written = sorted(folder.glob("[0-9]*_mask*.png"))
    assert len(written) == len(masks) and all(row["masks"] for row in (first[0], second[0]))
    for path, mask in zip(written, masks, strict=True):
        assert np.array_equal(load_mask(path), load_mask({k: mask[k] for k in ("size", "counts")}))
    assert all((folder / name).read_bytes() == content for name, content in before.items())
    assert int(written[-1].name[:5]) < 6


def test_result_file_can_be_scored(results):
    scores = score_results(results[2])
    assert 0 <= scores["cIoU"] <= 1 and 0 <= scores["gIoU"] <= 1


def test_batches_answer_like_single_requests(results, run):
    for together, alone in zip(results[0], run(max_batch_size=1), strict=True):
        assert together["response"] == alone["response"]
        assert masks_alike(together["masks"], alone["masks"])


def test_hard_masks_are_those_of_the_codes(run, stage_two):
    tokenizer = MaskTokenizer.from_pretrained(stage_two[1])
    count = 0
    for row in run(mask_decoding="hard"):
        for mask in row["masks"]:
            square = tokenizer.decode(torch.tensor([mask["codes"]]))[0].detach().numpy()
            assert np.array_equal(load_mask({k: mask[k] for k in ("size", "counts")}), from_square(square, (64, 64)))
            count += 1
    assert count > 8


def test_soft_masks_come_from_probabilities_and_hard_ones_from_the_same_answers_codes(run, monkeypatch):
    decoded = {"decode_probabilities": 0, "decode": 0}

    def counted(name):
        method = getattr(MaskTokenizer, name)

        def decode(self, rows):
            decoded[name] += len(rows)
            return method(self, rows)

        return decode

    for name in decoded:
        monkeypatch.setattr(MaskTokenizer, name, counted(name))
    soft = run()
    masks = sum(len(row["masks"]) for row in soft)
    assert decoded == {"decode_probabilities": masks, "decode": 0}
    hard = run(mask_decoding="hard")
    assert decoded == {"decode_probabilities": masks, "decode": masks}
    for one, other in zip(soft, hard, strict=True):
        assert one["response"] == other["response"]
        assert [m["codes"] for m in one["masks"]] == [m["codes"] for m in other["masks"]]


def test_fewer_mask_tokens_give_coarser_complete_masks(run):
    rows = run(num_mask_tokens=2)
    masks = [mask for row in rows for mask in row["masks"]]
    assert masks and all(len(mask["codes"]) <= 2 and mask["complete"] for mask in masks)


def test_mask_cut_by_the_token_limit_is_marked(run):
    rows = [row for row in run(max_new_tokens=10) if "<|mt_" in row["response"]]
    cut = [mask for row in rows for mask in row["masks"] if "<|mt_end|>" not in row["response"]]
    assert cut and not any(mask["complete"] for mask in cut)


def test_constrained_sampling_generates_complete_masks(run):
    for row in run(temperature=2.0, max_new_tokens=60):
        for span in text_to_codes(row["response"], 12, 4):
            closed = span.end < len(row["response"])
            assert span.complete or not closed, row["response"]
        assert "<|mt_end|>" not in row["response"] or row["masks"]


def test_without_constraint_malformed_masks_are_marked_and_nothing_breaks(run):
    rows = run(temperature=3.0, max_new_tokens=60, constrained_decoding=False)
    masks = [mask for row in rows for mask in row["masks"]]
    assert any(not mask["complete"] for mask in masks)
    assert all(mask["codes"] for mask in masks)


def test_masks_of_beam_search_have_no_scores(run):
    rows = run(num_beams=2)
    masks = [mask for row in rows for mask in row["masks"]]
    assert masks and all(mask["score"] is None and mask["complete"] for mask in masks)


def test_masks_have_the_size_of_their_image_and_not_of_the_square(run, world):
    rows = [world.row("<image>Segment the large red triangle.", "<mask>", masks=[world.left])]
    (row,) = run(rows)
    assert row["masks"] and all(mask["size"] == [48, 64] for mask in row["masks"])


def test_masks_have_the_size_of_the_file_where_the_template_shrinks_images(run, world):
    row = world.row("<image>Segment what is beside <mask>.", "<mask>", masks=[world.right, world.left])
    (result,) = run([row], max_pixels=32 * 32)
    assert result["masks"] and all(mask["size"] == [48, 64] for mask in result["masks"])


def test_masks_in_questions_are_encoded(run, world, monkeypatch, stage_two):
    encoded = []
    encode = MaskTokenizer.encode

    def observed(self, squares):
        codes = encode(self, squares)
        encoded.append((squares, codes))
        return codes

    monkeypatch.setattr(MaskTokenizer, "encode", observed)
    row = world.row("<image>Segment what is beside <mask>.", "<mask>", masks=[world.right, world.left])
    (result,) = run([row])
    ((squares, codes),) = encoded
    assert np.allclose(squares[0].numpy(), to_square(world.right, 16), atol=1 / 255)
    assert len(codes) == 1
    (truth,) = result["target_masks"]  # of the answer, not of the question
    assert np.array_equal(load_mask(truth), world.left)


def test_rows_without_masks_and_without_answers_are_answered(run, world):
    question = {"messages": [{"role": "user", "content": "<image>Segment the square."}], "images": [str(world.image)]}
    text = {"messages": [{"role": "user", "content": "Hello."}]}
    with_image, without = run([question, text])
    assert isinstance(with_image["masks"], list) and "target_masks" not in with_image
    assert without["masks"] == []


def test_mask_tokenizer_option_overrides_that_of_the_checkpoint(run, world, stage_two):
    own, other = run(mask_decoding="hard"), run(mask_decoding="hard", mask_tokenizer=world.mask_tokenizer)
    assert [row["response"] for row in own] == [row["response"] for row in other]
    assert any(a["masks"] != b["masks"] for a, b in zip(own, other, strict=True) if a["masks"])


def test_streamed_dataset_inference_writes_masks(run, results):
    rows = run(stream=True, max_batch_size=None)
    for row, expected in zip(rows, results[0], strict=True):
        assert row["response"] == expected["response"]
        assert [m["codes"] for m in row["masks"]] == [m["codes"] for m in expected["masks"]]


def test_streamed_dataset_inference_writes_pictures_only_if_requested(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(stream=True, max_batch_size=None)
    assert not (tmp_path / "masks").exists()
    run(stream=True, max_batch_size=None, mask_dir=tmp_path / "asked")
    assert list((tmp_path / "asked").iterdir())


def test_interactive_mode_prints_the_paths_of_masks(stage_two, world, tmp_path, monkeypatch, capsys):
    from swift.pipelines import infer_main

    image = json.loads(world.scenes.read_text().splitlines()[1])["images"][0]
    lines = ["<image>Segment the large red triangle.", image, "exit"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    monkeypatch.chdir(tmp_path)
    infer_main(flags(model=stage_two[1], max_new_tokens=48, temperature=0, result_path=tmp_path / "chat.jsonl"))
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("masks: "))
    paths = line.removeprefix("masks: ").split(", ")
    assert len(paths) == 2
    assert load_mask(tmp_path / paths[0]).shape == (64, 64)
    (row,) = read_rows(tmp_path / "chat.jsonl")
    assert list(row["masks"][0]) == KEYS


def test_interactive_answers_without_a_mask_print_no_path(stage_two, world, tmp_path, monkeypatch, capsys):
    from swift.pipelines import infer_main

    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello.\nclear\nexit\n"))
    monkeypatch.chdir(tmp_path)
    infer_main(flags(model=stage_two[1], max_new_tokens=8, temperature=0, mask_dir=tmp_path / "pictures"))
    assert "masks: " not in capsys.readouterr().out


def test_validation_by_generation_works_in_training(world, stage_two, tmp_path):
    result = sft(
        model=stage_two[1],
        dataset=world.scenes,
        val_dataset=world.scenes,
        predict_with_generate=True,
        eval_metric="acc",
        metric_for_best_model="eval_runtime",
        eval_strategy="steps",
        eval_steps=1,
        max_steps=1,
        max_new_tokens=16,
        output_dir=tmp_path,
    )
    assert any(key.startswith("eval_") for entry in result["log_history"] for key in entry)
