"""`himtok tokenize`: codes of the masks of a dataset, read by any number of processes."""

import json
import subprocess
import sys

import pytest
import torch
from coded_rows import (
    SIZE,
    codes_in_training,
    many_rows,
    random_masks,
    read_rows,
    row_of,
    save_image,
    save_mask,
    with_codes,
    write_rows,
)
from paths import ROOT
from tiny_models import tiny_model

from himtok_plugin.data import offline_codes
from himtok_plugin.data.offline_codes import encoder_fingerprint, write_codes
from himtok_plugin.masks import to_rle


def test_masks_of_every_form_get_the_codes_of_the_training_step(tokenizer, tmp_path):
    first, second, third = random_masks(3)
    path, polygons = save_mask(tmp_path / "mask.png", first), {"polygons": [[2, 2, 9, 2, 9, 17.5]], "size": list(SIZE)}
    rle = to_rle(second)
    forms = [[path], [rle, polygons], [to_rle(third), path, rle]]
    image = save_image(tmp_path / "a.png")
    reference = [{"image": image, "mask": path}, {"image": image, "mask": [path, rle]}, {"mask": polygons}]
    rows = [row_of(*form) for form in forms] + reference + [{"masks": rle}]
    summary = write_codes(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", tokenizer)
    expected = [*forms, [path], [path, rle], [polygons], [rle]]
    codes = [row["mask_codes"] for row in read_rows(tmp_path / "out.jsonl")]
    assert codes == [codes_in_training(tokenizer, *sources) for sources in expected]
    assert len({tuple(code) for code in codes[2]}) > 1
    assert (summary.rows, summary.masks, summary.encoded, summary.reused, summary.rejected) == (7, 11, 4, 7, 0)


def test_rows_keep_their_order_and_every_character(tokenizer, tmp_path):
    rows = many_rows()
    lines = [json.dumps(row, ensure_ascii=i % 2 == 0, indent=None) for i, row in enumerate(rows)]
    lines[3] = lines[3].replace('": ', '"  :\t').replace("3", "3.00")
    source = write_rows(tmp_path / "in.jsonl", lines)
    write_codes(source, tmp_path / "out.jsonl", tokenizer, batch_size=7)
    written = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(written) == len(lines)
    for before, after, row in zip(lines, written, rows, strict=True):
        assert after.startswith(before[:-1] + ', "mask_codes": [') if "masks" in row else after == before
    others = [i for i in range(len(rows)) if i != 3]
    expected = with_codes(rows, tiny_model())
    assert [json.loads(written[i]) for i in others] == [expected[i] for i in others]


def test_the_encoder_gets_full_batches_of_different_masks(tokenizer, tmp_path):
    masks = [to_rle(mask) for mask in random_masks(10)]
    rows = [row_of(mask) for mask in masks for _ in range(3)]
    summary = write_codes(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", tokenizer, batch_size=4)
    assert tokenizer.encoded == [4, 4, 2]
    assert (summary.masks, summary.encoded, summary.reused) == (30, 10, 20)


def test_limits_of_remembered_masks_and_waiting_rows_change_no_codes(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(offline_codes, "MAX_REMEMBERED", 2)
    monkeypatch.setattr(offline_codes, "MAX_WAITING", 10)
    rows = many_rows()
    summary = write_codes(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", tokenizer)
    assert read_rows(tmp_path / "out.jsonl") == with_codes(rows, tiny_model())
    assert max(tokenizer.encoded) < 30 and summary.encoded > len(
        {json.dumps(m) for r in rows for m in r.get("masks", [])}
    )


def test_codes_in_the_input_are_replaced(tokenizer, tmp_path):
    mask = to_rle(random_masks(1)[0])
    rows = [{"mask_codes": [[0, 0, 0, 0]], **row_of(mask)}, {"mask_codes": None, **row_of(mask)}]
    write_codes(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", tokenizer)
    assert read_rows(tmp_path / "out.jsonl") == [
        {**row, "mask_codes": codes_in_training(tokenizer, mask)} for row in rows
    ]


def test_paths_follow_root_image_dir(tokenizer, tmp_path, monkeypatch):
    save_mask(tmp_path / "mask.png", random_masks(1)[0])
    save_image(tmp_path / "image.png")
    monkeypatch.setenv("ROOT_IMAGE_DIR", str(tmp_path))
    source = write_rows(tmp_path / "in.jsonl", [row_of("mask.png", images=["image.png"])])
    assert write_codes(source, tmp_path / "out.jsonl", tokenizer, strict=True).encoded == 1


def test_the_fingerprint_depends_on_what_codes_depend_on_only():
    model = tiny_model()
    before = encoder_fingerprint(model)
    with torch.no_grad():
        model.decoder.mask_token += 1  # as stages 2 and 3 train it
        assert encoder_fingerprint(model) == before
        model.quantize.embedding.weight[0, 0] += 1
    assert encoder_fingerprint(model) != before
    scaled = tiny_model(output_scale=4.0)  # other masks, which matter in a search only
    assert encoder_fingerprint(scaled) == encoder_fingerprint(tiny_model())
    assert encoder_fingerprint(scaled, searched=True) != encoder_fingerprint(tiny_model(), searched=True)
    assert encoder_fingerprint(tiny_model(latent_layout="legacy_reshape")) != encoder_fingerprint(tiny_model())


# ----- worker processes


def test_the_output_does_not_depend_on_the_number_of_workers(tokenizer, tmp_path):
    rows = many_rows()
    rows[7] = "no JSON"
    source = write_rows(tmp_path / "in.jsonl", rows)
    summaries = [write_codes(source, tmp_path / f"{n}.jsonl", tokenizer, num_workers=n) for n in (0, 2)]
    assert summaries[0] == summaries[1]
    for name in ("jsonl", "jsonl.rejects.jsonl"):
        assert (tmp_path / f"0.{name}").read_bytes() == (tmp_path / f"2.{name}").read_bytes()


def test_workers_import_neither_torch_nor_transformers():
    code = "import sys, himtok_plugin.data.sample_reading; print({'torch', 'transformers', 'swift'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


# ----- arguments


def test_an_untrained_tokenizer_is_refused(himtok, folder, tmp_path):
    tiny_model().save_pretrained(folder)
    source, out = write_rows(tmp_path / "in.jsonl", many_rows(5)), tmp_path / "out.jsonl"
    status, printed, err = himtok("tokenize", source, out, "--mask_tokenizer", folder)
    assert status == 2 and not printed and err.count("\n") == 1
    assert f"mask tokenizer {str(folder)!r}: codebook_ready is false" in err and "stage 1" in err
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "tokenizer"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch_size", 0), "batch_size is 0: expected at least 1"),
        (("--candidates", 13), "candidates=13: expected 1 to 12"),
        (("--num_workers", -1), "num_workers is -1: expected at least 0"),
        (("--device", "abacus"), "device: got 'abacus', expected cpu, cuda"),
        (("--device", "cuda:99"), "device: got 'cuda:99', expected cpu or one of"),
        (("--mask_tokenizer", "tests"), "holds neither a mask tokenizer"),
    ],
)
def test_bad_arguments_are_one_line(himtok, folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(ROOT)
    source = write_rows(tmp_path / "in.jsonl", many_rows(5))
    status, printed, err = himtok("tokenize", source, tmp_path / "o", "--mask_tokenizer", folder, *arguments)
    assert status == 2 and not printed and err.count("\n") == 1 and message in err
    assert himtok("tokenize", tmp_path / "none.jsonl", tmp_path / "o", "--mask_tokenizer", folder)[0] == 2


@pytest.mark.parametrize("content", [b"", b"\n \n", b"[]", b"\xef\xbb\xbf"])
def test_an_input_without_rows_is_refused_and_leaves_nothing_behind(tokenizer, tmp_path, content):
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"in\.jsonl: has no rows"):
        write_codes(tmp_path / "in.jsonl", tmp_path / "out.jsonl", tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
