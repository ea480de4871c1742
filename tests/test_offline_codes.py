"""`himtok tokenize`: a dataset's masks to codes, through kills, in several processes, with bad rows."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import random_squares, tiny_model

from himtok_plugin import offline_codes
from himtok_plugin.mask_rows import first_image_size, load_squares
from himtok_plugin.mask_text import codes_to_text
from himtok_plugin.masks import to_rle
from himtok_plugin.offline_codes import encoder_fingerprint, write_codes
from himtok_plugin.resumable_output import BLOCK, REJECTED

SIDE = 16  # of the tiny tokenizer's squares
SIZE = (24, 20)


def trained(**fields):
    """A tiny tokenizer that is said to be trained: 4 tokens of 12 codes."""
    return tiny_model(codebook_ready=True, **fields)


@pytest.fixture(autouse=True)
def no_root(monkeypatch):
    """Relative paths start from the working directory, whatever tests of ms-swift left behind."""
    monkeypatch.delenv("ROOT_IMAGE_DIR", raising=False)


@pytest.fixture
def folder(tmp_path):
    """Folder of a tiny tokenizer."""
    trained().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def tokenizer():
    """The same; `encoded` holds the number of squares of each call of `encode`."""
    return observed(trained())


def observed(model):
    encode, model.encoded = model.encode, []

    def counted(squares, candidates=1):
        model.encoded.append(len(squares))
        return encode(squares, candidates)

    model.encode = counted
    return model


def random_masks(count, seed=0):
    """`count` different masks of SIZE."""
    rng = np.random.default_rng(seed)
    squares = random_squares(count, side=SIZE[0], seed=seed).numpy()[:, :, : SIZE[1]]
    return [(square > 0) & (rng.random(SIZE) < 0.8) for square in squares]


def row_of(*masks, **columns):
    return {
        "messages": [
            {"role": "user", "content": "<image>Où?"},
            {"role": "assistant", "content": "<mask>" * len(masks)},
        ],
        "masks": list(masks),
        **columns,
    }


def write_rows(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def save_mask(path, mask):
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    return str(path)


def save_image(path, size=SIZE):
    Image.new("RGB", size[::-1]).save(path)
    return str(path)


def codes_in_training(model, *sources, **options):
    """What a training step computes: the batch of 8-bit squares, made float on the device; options are `encode`'s."""
    squares = torch.from_numpy(load_squares(dict(enumerate(sources)), SIDE, None, "row"))
    return model.encode(squares.float() / 255, **options).tolist()


def many_rows(count=100, seed=0):
    """Rows of no, one or two masks, some masks in several rows."""
    masks = [to_rle(mask) for mask in random_masks(count, seed)]
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        kind = i % 5
        sources = [masks[j] for j in rng.integers(max(i - 9, 0), i + 1, size=kind % 3)]
        rows.append({"query": f"Question {i}"} if kind == 4 else row_of(*sources, number=i))
    return rows


def with_codes(rows, model):
    return [
        {**row, "mask_codes": codes_in_training(model, *row["masks"]) if row["masks"] else []}
        if "masks" in row
        else row
        for row in rows
    ]


# ----- rows


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


def test_rows_keep_their_order_and_every_character_of_theirs(tokenizer, tmp_path):
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


def test_the_encoder_sees_full_batches_of_different_masks(tokenizer, tmp_path):
    masks = [to_rle(mask) for mask in random_masks(10)]
    rows = [row_of(mask) for mask in masks for _ in range(3)]
    summary = write_codes(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", tokenizer, batch_size=4)
    assert tokenizer.encoded == [4, 4, 2]
    assert (summary.masks, summary.encoded, summary.reused) == (30, 10, 20)


def test_few_remembered_masks_and_few_waiting_rows_change_no_codes(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(offline_codes, "REMEMBERED", 2)
    monkeypatch.setattr(offline_codes, "MAX_WAITING", 10)
    rows = many_rows()
    summary = write_codes(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", tokenizer)
    assert read_rows(tmp_path / "out.jsonl") == with_codes(rows, tiny_model())
    assert max(tokenizer.encoded) < 30 and summary.encoded > len(
        {json.dumps(m) for r in rows for m in r.get("masks", [])}
    )


def test_codes_that_a_row_brings_along_are_made_anew(tokenizer, tmp_path):
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


@pytest.mark.parametrize(
    "columns",
    [{"images": ["i.png"]}, {"image": "i.png"}, {"images": [{"path": "i.png", "bytes": None}]}],
    ids=["images", "image", "dictionary"],
)
def test_size_of_the_first_image_is_found_in_every_form(tmp_path, monkeypatch, columns):
    monkeypatch.chdir(tmp_path)
    assert first_image_size(columns) is None
    Image.new("RGB", SIZE[::-1]).save("i.png")
    assert first_image_size(columns) == SIZE
    Path("i.png").write_text("no image")
    assert first_image_size(columns) is None


@pytest.mark.parametrize(
    "columns", [{}, {"images": []}, {"images": None}, {"images": ["https://nowhere/i.png"]}], ids=str
)
def test_without_an_image_to_open_no_size_is_asked_for(columns):
    assert first_image_size(columns) is None


# ----- reading processes


def test_any_number_of_reading_processes_writes_the_same(tokenizer, tmp_path):
    rows = many_rows()
    rows[7] = "no JSON"
    source = write_rows(tmp_path / "in.jsonl", rows)
    summaries = [write_codes(source, tmp_path / f"{n}.jsonl", tokenizer, num_workers=n) for n in (0, 2)]
    assert summaries[0] == summaries[1]
    for name in ("jsonl", "jsonl.rejects.jsonl"):
        assert (tmp_path / f"0.{name}").read_bytes() == (tmp_path / f"2.{name}").read_bytes()


def test_reading_processes_import_neither_torch_nor_transformers():
    code = "import sys, himtok_plugin.row_reading; print({'torch', 'transformers', 'swift'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


# ----- kills


def test_a_killed_run_goes_on_where_it_was_and_leaves_no_process_behind(himtok, folder, tmp_path):
    stuck = tmp_path / "stuck.png"
    os.mkfifo(stuck)  # whoever reads it waits, so that the run is killed on its way for certain
    rows = many_rows()
    rows[70] = row_of(str(stuck))
    source, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    part = tmp_path / "out.jsonl.rank0-of-1.part"
    arguments = ["tokenize", str(source), str(out), "--mask_tokenizer", str(folder), "--batch_size", "1"]
    command = [sys.executable, "-m", "himtok_plugin.cli", *arguments, "--num_workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: part.exists() and part.read_bytes().count(b"\n") >= 40)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    readers = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = part.read_bytes()
    wait_for(lambda: not any(map(is_running, readers)))
    assert not out.exists()
    stuck.unlink()
    save_mask(stuck, random_masks(1)[0])
    status, printed, _ = himtok(*arguments, "--num_workers", "0")
    assert status == 0 and str(finished.count(b"\n")) in printed.split("finished_before")[1].splitlines()[0]
    assert out.read_bytes().startswith(finished) and read_rows(out) == with_codes(rows, tiny_model())


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Stop(Exception):
    pass


@pytest.fixture
def interrupted(tmp_path):
    """A run over 100 rows that stopped on its way: (input, output, the part of it that is done)."""
    source, out = write_rows(tmp_path / "in.jsonl", many_rows()), tmp_path / "out.jsonl"
    interrupt(source, out, trained())
    return source, out, tmp_path / "out.jsonl.rank0-of-1.part"


def interrupt(source, out, model, after=50, **options):
    def report(finished, total, rejected):
        if finished >= after:
            raise Stop

    with pytest.raises(Stop):
        write_codes(source, out, model, batch_size=3, on_progress=report, **options)


def test_finished_rows_are_not_encoded_again(interrupted, tokenizer):
    source, out, part = interrupted
    finished = part.read_bytes()
    lines = finished.splitlines()
    summary = write_codes(source, out, tokenizer)
    assert summary.finished_before == len(lines) >= 50
    rest = [json.dumps(m) for row in many_rows()[len(lines) :] for m in row.get("masks", [])]
    assert sum(tokenizer.encoded) == summary.encoded == len(set(rest)) and summary.masks == len(rest)
    assert out.read_bytes().startswith(finished)
    assert read_rows(out) == with_codes(many_rows(), tiny_model())
    assert {path.name for path in out.parent.iterdir()} == {"in.jsonl", "out.jsonl", "out.jsonl.state.json"}


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_line_cut_in_the_middle_is_written_again(interrupted, tokenizer, cut):
    source, out, part = interrupted
    whole = part.read_bytes().rstrip(b"\n").split(b"\n")
    part.write_bytes(b"\n".join(whole)[:-cut])
    assert write_codes(source, out, tokenizer).finished_before == len(whole) - 1
    assert read_rows(out) == with_codes(many_rows(), tiny_model())


def test_a_run_killed_while_joining_its_parts_joins_them_again(tokenizer, tmp_path, monkeypatch):
    source, out = write_rows(tmp_path / "in.jsonl", many_rows()), tmp_path / "out.jsonl"
    with monkeypatch.context() as patched:
        patched.setattr("himtok_plugin.resumable_output.ResumableOutput._join", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_codes(source, out, tokenizer)
    encoded = sum(tokenizer.encoded)
    assert write_codes(source, out, tokenizer).finished_before == 100
    assert sum(tokenizer.encoded) == encoded and read_rows(out) == with_codes(many_rows(), tiny_model())


def test_a_finished_run_says_so_and_encodes_nothing(himtok, folder, tmp_path):
    source, out = write_rows(tmp_path / "in.jsonl", many_rows(20)), tmp_path / "new" / "out.jsonl"
    arguments = ("tokenize", source, out, "--mask_tokenizer", folder, "--num_workers", 0)
    status, printed, err = himtok(*arguments)
    assert status == 0 and not err
    assert all(name in printed for name in ("rows", "masks", "encoded", "reused", "rejected"))
    before = out.stat().st_mtime_ns
    status, _, err = himtok(*arguments)
    assert status == 0 and "out.jsonl is complete" in err and out.stat().st_mtime_ns == before


def test_a_lost_output_is_made_again(tokenizer, tmp_path):
    source, out = write_rows(tmp_path / "in.jsonl", many_rows(20)), tmp_path / "out.jsonl"
    write_codes(source, out, tokenizer)
    out.unlink()
    assert write_codes(source, out, tokenizer).finished_before == 0 and out.exists()


def test_two_runs_at_once_are_refused(interrupted, tokenizer):
    source, out, _ = interrupted

    def second(*_):
        with pytest.raises(ValueError, match="out.jsonl: another run is writing it"):
            write_codes(source, out, tokenizer)

    write_codes(source, out, tokenizer, on_progress=second)
    assert read_rows(out) == with_codes(many_rows(), tiny_model())


# ----- going on from something else


@pytest.mark.parametrize("finished", [False, True])
def test_another_mask_tokenizer_or_input_is_refused(interrupted, tokenizer, finished):
    source, out, _ = interrupted
    if finished:
        write_codes(source, out, tokenizer)
    with pytest.raises(
        ValueError, match="out.jsonl: was begun with mask_tokenizer [0-9a-f]{32}, this is .*--overwrite"
    ):
        write_codes(source, out, trained(seed=1))
    rows = many_rows()
    write_rows(source, rows[1:] + rows[:1])  # of the same size
    with pytest.raises(ValueError, match="out.jsonl: was begun with input [0-9a-f]{32}, this is"):
        write_codes(source, out, tokenizer)
    summary = write_codes(source, out, tokenizer, overwrite=True)
    assert summary.finished_before == 0 and read_rows(out) == with_codes(rows[1:] + rows[:1], tiny_model())


def test_searched_codes_are_written_and_not_mixed_with_others(himtok, folder, tmp_path):
    masks = [to_rle(mask) for mask in random_masks(3)]
    source, out = write_rows(tmp_path / "in.jsonl", [row_of(*masks)]), tmp_path / "out.jsonl"
    arguments = ("tokenize", source, out, "--mask_tokenizer", folder, "--num_workers", 0)
    assert himtok(*arguments, "--candidates", 4)[0] == 0
    nearest, searched = (codes_in_training(trained(), *masks, candidates=n) for n in (1, 4))
    assert read_rows(out)[0]["mask_codes"] == searched != nearest
    status, _, err = himtok(*arguments)
    assert status == 2 and "was begun with candidates 4, this is 1: expected the same" in err


def test_what_codes_do_not_depend_on_is_not_in_the_fingerprint():
    model = tiny_model()
    before = encoder_fingerprint(model)
    with torch.no_grad():
        model.decoder.mask_token += 1  # as stages 2 and 3 train it
        assert encoder_fingerprint(model) == before
        model.quantize.embedding.weight[0, 0] += 1
    assert encoder_fingerprint(model) != before
    scaled = tiny_model(output_scale=4.0)  # makes other masks, of which a search chooses
    assert encoder_fingerprint(scaled) == encoder_fingerprint(tiny_model())
    assert encoder_fingerprint(scaled, searched=True) != encoder_fingerprint(tiny_model(), searched=True)
    assert encoder_fingerprint(tiny_model(latent_layout="legacy_reshape")) != encoder_fingerprint(tiny_model())


def test_a_file_that_is_no_output_of_ours_is_kept(himtok, folder, tmp_path):
    source = write_rows(tmp_path / "in.jsonl", many_rows(20))
    out = write_rows(tmp_path / "out.jsonl", ["mine"])
    arguments = ("--mask_tokenizer", folder, "--num_workers", 0)
    for target, message in ((out, "give --overwrite"), (source, "the input itself: expected another file")):
        status, printed, err = himtok("tokenize", source, target, *arguments)
        assert status == 2 and not printed and err.count("\n") == 1 and message in err
    status, _, err = himtok("tokenize", source, source, *arguments, "--overwrite")
    assert status == 2 and "the input itself" in err and len(read_rows(source)) == 20
    assert out.read_text() == "mine\n"
    assert himtok("tokenize", source, out, *arguments, "--overwrite")[0] == 0 and len(read_rows(out)) == 20


# ----- bad rows


@pytest.fixture
def bad_rows(tmp_path):
    """(row, its error) of everything that can be wrong."""
    mask = random_masks(1)[0]
    image, good = save_image(tmp_path / "image.png", (9, 9)), to_rle(mask)
    (tmp_path / "text.png").write_text("no image")
    nowhere, text = str(tmp_path / "nope.png"), str(tmp_path / "text.png")
    question = {"role": "user", "content": "<mask> and <mask>?"}
    return [
        ("{broken", "row {}: is not JSON ("),
        ("[1, 2]", "row {}: is [1, 2]: expected a JSON object"),
        (row_of(good, "missing.png"), "row {}: masks[1]: mask 'missing.png' cannot be read"),
        (row_of({"size": [24, 20]}), "row {}: masks[0]: mask has the keys ['size']"),
        (row_of(7), "row {}: masks[0]: mask is 7: expected a path"),
        ({"masks": 7}, "row {}: masks: got 7, expected a list"),
        (row_of(good, images=[image]), "row {}: masks[0]: mask has size (h, w) = (24, 20): expected (9, 9)"),
        ({"image": image, "mask": good}, "row {}: masks[0]: mask has size (h, w) = (24, 20): expected (9, 9)"),
        (row_of(good, images=[nowhere]), f"row {{}}: images[0] {nowhere!r}: no such file"),
        ({"image": {"path": text}, "mask": good}, f"row {{}}: images[0] {text!r}: no image that can be read"),
        ({**row_of(good, good), "masks": [good]}, "row {}: messages hold 2 <mask>, masks holds 1: expected one mask"),
        ({**row_of(good), "masks": [good, good]}, "row {}: messages hold 1 <mask>, masks holds 2"),
        ({"messages": row_of(good)["messages"]}, "row {}: messages hold 1 <mask>, masks holds 0"),
        ({"messages": [question], "masks": [good]}, "row {}: messages hold 2 <mask>, masks holds 1"),
        (
            {"query": "Where?", "response": "<mask><mask>", "masks": good},
            "row {}: messages hold 2 <mask>, masks holds 1",
        ),
        ({**reference_row(2), "mask": good}, "row {}: messages hold 2 <mask>, masks holds 1"),
    ]


def reference_row(placeholders):
    """Text as in the authors' rows: 32 zeros where a mask belongs."""
    answer = codes_to_text([0] * 32) * placeholders
    return {"conversations": [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": answer}]}


def test_bad_rows_are_set_aside_with_number_error_and_text(himtok, folder, bad_rows, tmp_path):
    good = row_of(to_rle(random_masks(1)[0]))
    rows = [good] + [row for row, _ in bad_rows] + ["", good]
    source, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    arguments = ("tokenize", source, out, "--mask_tokenizer", folder, "--num_workers", 0)
    for _ in range(2):  # a finished run with bad rows goes on saying so
        status, printed, err = himtok(*arguments)
        assert status == 1 and "rejected" in printed
        assert f"rejected rows: {len(bad_rows)}, with errors in {out}.rejects.jsonl" in err
    assert [row["masks"] for row in read_rows(out)] == [good["masks"]] * 2
    rejects = read_rows(tmp_path / "out.jsonl.rejects.jsonl")
    assert [reject["row"] for reject in rejects] == list(range(2, 2 + len(bad_rows)))
    lines = source.read_text(encoding="utf-8").splitlines()
    assert [reject["line"] for reject in rejects] == lines[1:-2]
    for reject, (_, message) in zip(rejects, bad_rows, strict=True):
        assert reject["error"].startswith(message.format(reject["row"])), reject["error"]


def test_rows_whose_text_and_images_say_nothing_of_their_masks_pass(tokenizer, tmp_path):
    """Stage 1's rows, those of reinforcement learning, and images that are no files."""
    good, ask = to_rle(random_masks(1)[0]), {"role": "user", "content": "<image>Where?"}
    given = {"role": "user", "content": [{"type": "text", "text": "Beside <mask>?"}]}
    answered = {"role": "assistant", "content": "There."}
    rows = [
        {"masks": [good]},
        {"messages": [ask, answered], "masks": [good]},
        {"messages": [ask], "masks": [good]},
        {"messages": [given], "masks": [good, good]},
        {"messages": [given, answered], "masks": [good], "answer": "<mask>", "rejected_response": "<mask>"},
        {"history": [["Where is <mask>?", "Here."]], "query": "And?", "response": "<mask>", "masks": [good, good]},
        {**reference_row(2), "mask": [good, good]},
        row_of(good, images=["https://nowhere/i.png"]),
        row_of(good, images=["data:image/png;base64,iVBORw0KGgo="]),
        row_of(good, images=["iVBORw0KGgo" * 200]),
        row_of(good, images=[{"bytes": "iVBORw0KGgo=", "path": "nope.png"}]),
        row_of(images=["nope.png"]),
    ]
    summary = write_codes(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", tokenizer, strict=True)
    assert (summary.rows, summary.rejected) == (len(rows), 0)


def test_an_untrained_tokenizer_is_refused(himtok, folder, tmp_path):
    tiny_model().save_pretrained(folder)
    source, out = write_rows(tmp_path / "in.jsonl", many_rows(5)), tmp_path / "out.jsonl"
    status, printed, err = himtok("tokenize", source, out, "--mask_tokenizer", folder)
    assert status == 2 and not printed and err.count("\n") == 1
    assert f"mask tokenizer {str(folder)!r}: codebook_ready is false" in err and "stage 1" in err
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "tokenizer"}


def test_no_rejects_file_without_bad_rows(himtok, folder, tmp_path):
    good = row_of(to_rle(random_masks(1)[0]))
    source, out = write_rows(tmp_path / "in.jsonl", [good, "oops"]), tmp_path / "out.jsonl"
    rejects = tmp_path / "out.jsonl.rejects.jsonl"
    arguments = ("tokenize", source, out, "--mask_tokenizer", folder, "--num_workers", 0)
    assert himtok(*arguments)[0] == 1 and rejects.exists()
    write_rows(source, [good])
    assert himtok(*arguments, "--overwrite")[0] == 0 and not rejects.exists()


def test_a_strict_run_stops_at_the_first_bad_row_and_goes_on_when_its_mask_is_there(himtok, folder, tmp_path):
    good = row_of(to_rle(random_masks(1)[0]))
    missing = tmp_path / "late.png"
    source = write_rows(tmp_path / "in.jsonl", [good, good, row_of(str(missing)), good, "oops"])
    out, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.rank0-of-1.part"
    arguments = ("tokenize", source, out, "--mask_tokenizer", folder, "--num_workers", 0, "--strict")
    status, printed, err = himtok(*arguments)
    assert status == 2 and not printed and err.count("\n") == 1
    assert err.startswith(f"error: {source}: row 3: masks[0]: mask '{missing}' cannot be read")
    assert len(read_rows(part)) == 2 and not out.exists()
    save_mask(missing, random_masks(1)[0])
    status, _, err = himtok(*arguments)
    assert status == 2 and f"{source}: row 5: is not JSON" in err and len(read_rows(part)) == 4
    assert himtok(*arguments[:-1])[0] == 1 and len(read_rows(out)) == 4


def test_a_strict_run_reads_rows_again_that_another_had_set_aside(tokenizer, tmp_path):
    rows = many_rows()
    missing = tmp_path / "late.png"
    rows[10] = row_of(str(missing))
    source, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    interrupt(source, out, tokenizer)
    assert (tmp_path / "out.jsonl.rank0-of-1.part").read_bytes().splitlines()[10].startswith(REJECTED)
    save_mask(missing, random_masks(1)[0])
    summary = write_codes(source, out, tokenizer, strict=True)
    assert (summary.finished_before, summary.rejected) == (10, 0)
    assert read_rows(out) == with_codes(rows, tiny_model())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch_size", 0), "batch_size is 0: expected at least 1"),
        (("--candidates", 13), "candidates=13: expected 1 to 12"),
        (("--num_workers", -1), "num_workers is -1: expected at least 0"),
        (("--device", "abacus"), "device is 'abacus': expected cpu, cuda"),
        (("--device", "cuda:99"), "device is 'cuda:99': expected one of"),
        (("--mask_tokenizer", "tests"), "holds neither a mask tokenizer"),
    ],
)
def test_bad_arguments_are_one_line(himtok, folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(Path(__file__).parent.parent)
    source = write_rows(tmp_path / "in.jsonl", many_rows(5))
    status, printed, err = himtok("tokenize", source, tmp_path / "o", "--mask_tokenizer", folder, *arguments)
    assert status == 2 and not printed and err.count("\n") == 1 and message in err
    assert himtok("tokenize", tmp_path / "none.jsonl", tmp_path / "o", "--mask_tokenizer", folder)[0] == 2


def test_an_empty_input_gives_an_empty_output(tokenizer, tmp_path):
    summary = write_codes(write_rows(tmp_path / "in.jsonl", []), tmp_path / "out.jsonl", tokenizer)
    assert summary.rows == 0 and (tmp_path / "out.jsonl").read_bytes() == b""


# ----- torchrun


def test_two_processes_of_torchrun_write_what_one_writes(folder, tokenizer, tmp_path):
    rows = many_rows(2 * BLOCK + 30)
    rows[BLOCK + 3] = "no JSON"
    source, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "two.jsonl"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    options = ["tokenize", source, out, "--mask_tokenizer", folder, "--num_workers", "0"]
    result = subprocess.run(
        [*torchrun, "-m", "himtok_plugin.cli", *map(str, options)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 1 and "rejected rows: 1, " in result.stderr, result.stderr
    assert result.stdout.count("finished_before") == 1
    alone = write_codes(source, tmp_path / "one.jsonl", tokenizer)
    for name in ("jsonl", "jsonl.rejects.jsonl"):
        assert (tmp_path / f"two.{name}").read_bytes() == (tmp_path / f"one.{name}").read_bytes()
    assert not list(tmp_path.glob("*.part"))
    assert (alone.rows, alone.rejected) == (len(rows), 1)
    again = write_codes(source, out, tokenizer)  # it does not matter how many processes wrote a finished one
    assert again.finished_before == len(rows)


def test_a_run_of_two_processes_is_not_gone_on_with_by_one(interrupted, tokenizer):
    source, out, _ = interrupted
    state = out.with_name("out.jsonl.state.json")
    state.write_text(json.dumps({**json.loads(state.read_text()), "processes": 2}))
    with pytest.raises(ValueError, match="was begun with processes 2, this is 1: expected the same, or --overwrite"):
        write_codes(source, out, tokenizer)
