"""Formats that are lists of entries: PSALM's, GranD-f, REC, POPE, VQAv2, mask perception."""

import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from on_disk import blob, by_pycocotools, decoded, polygon, records, uncompressed, write_image, write_json
from PIL import Image
from pycocotools import mask as coco

from himtok_plugin.mask_text import codes_to_text

SIZE = (48, 64)
RLE = coco.encode(np.asfortranarray(blob(seed=3), dtype=np.uint8))
RLE = {"size": list(SIZE), "counts": RLE["counts"].decode()}


def write_lines(path, entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(entry) for entry in entries) + "\n")
    return path


# ----- PSALM


def psalm(number, segmentations, *texts, **more):
    return {
        "image_info": {"id": number, "file_name": f"COCO_train2014_{number:012}.jpg", "height": 48, "width": 64},
        "anns": [
            {"id": i, "segmentation": s, "bbox": [1, 2, 3, 4], "category_id": 1} for i, s in enumerate(segmentations)
        ],
        "instruction": [{"sent": text, "raw": text, "sent_id": i} for i, text in enumerate(texts)],
        "new_img_id": number,
        **more,
    }


SEGMENTATIONS = ([[polygon(1)]], [uncompressed(blob(seed=2)), [polygon(3), polygon(4)]], [])
PSALM = [psalm(1, SEGMENTATIONS[0], "left dog", "a dog"), psalm(2, SEGMENTATIONS[1], "both"), psalm(3, [], "a zebra")]


def pictures(root):
    for number in (1, 2, 3):
        write_image(root / "train2014" / f"COCO_train2014_{number:012}.jpg", SIZE)


def check_psalm(rows):
    assert [len(row["masks"]) for row in rows] == [1, 1, 2, 0]
    np.testing.assert_array_equal(decoded(rows[0]["masks"][0]), by_pycocotools(SEGMENTATIONS[0][0], SIZE))
    for mask, segmentation in zip(rows[2]["masks"], SEGMENTATIONS[1], strict=True):
        np.testing.assert_array_equal(decoded(mask), by_pycocotools(segmentation, SIZE))
    assert "a dog" in rows[1]["messages"][0]["content"] and "zebra" in rows[3]["messages"][1]["content"]


@pytest.mark.parametrize("kind", ["list", "lines", "parquet of text", "parquet of structs"])
def test_psalm_entries_in_every_file_format(tmp_path, prepare, kind):
    pictures(tmp_path)
    if kind == "list":
        write_json(tmp_path / "refcoco_train.json", PSALM)
    elif kind == "lines":
        write_lines(tmp_path / "refcoco_train.jsonl", PSALM)
    elif kind == "parquet of text":
        columns = {key: [json.dumps(entry[key]) for entry in PSALM] for key in ("image_info", "anns", "instruction")}
        (tmp_path / "data").mkdir()
        pyarrow.parquet.write_table(
            pyarrow.table(columns), tmp_path / "data" / "train-00000-of-00001.parquet", row_group_size=2
        )
    else:
        # One column has one type: all segmentations are RLE, and all of them compressed.
        entries = json.loads(json.dumps(PSALM))
        for entry, segmentations in zip(entries, SEGMENTATIONS, strict=True):
            for annotation, segmentation in zip(entry["anns"], segmentations, strict=True):
                found = coco.encode(np.asfortranarray(by_pycocotools(segmentation, SIZE), dtype=np.uint8))
                annotation["segmentation"] = {"size": list(SIZE), "counts": found["counts"]}
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(entries), tmp_path / "train.parquet")
    check_psalm(prepare("psalm", tmp_path)[0])


def test_images_inside_parquet_files_are_extracted(tmp_path, prepare):
    stream = io.BytesIO()
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(stream, "JPEG")
    entries = [
        {**{key: json.dumps(PSALM[0][key]) for key in ("image_info", "anns", "instruction")},
         "image": {"bytes": stream.getvalue(), "path": "../../evil.jpg"}}
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(entries), tmp_path / "train.parquet")
    assert "give --images DIR" in prepare("psalm", tmp_path, status=2)
    rows, _, _ = prepare("psalm", tmp_path, "--images", tmp_path / "pictures")
    assert rows[0]["images"] == [str(tmp_path / "pictures" / "COCO_train2014_000000000001.jpg")]


@pytest.mark.parametrize(
    ("reason", "entry"),
    [
        ("entry lacks a field", {"image_info": {}}),
        ("entry lacks a field", psalm(1, [[polygon(1)]])),
        ("entry lacks a field", {**psalm(1, [], "x"), "anns": "{"}),
        ("image is missing", psalm(7, [], "x")),
        ("mask cannot be read", psalm(1, [5], "x")),
        ("mask has no pixels", psalm(1, [[[5, 5, 5, 5, 5, 5]]], "x")),
        ("mask cannot be read", psalm(1, [{"size": [64, 48], "counts": [64 * 48]}], "x")),
        (
            "image has another size than its annotation",
            {**psalm(1, [], "x"), "image_info": {**psalm(1, [], "x")["image_info"], "height": 9}},
        ),
    ],
)
def test_psalm_bad_entries_are_counted(tmp_path, prepare, reason, entry):
    pictures(tmp_path)
    write_lines(tmp_path / "train.jsonl", [*PSALM, entry])
    rows, summary, _ = prepare("psalm", tmp_path)
    assert len(rows) == 4 and summary["skipped"] == {reason: 1}
    assert reason in prepare("psalm", tmp_path, "--strict", status=2)


@pytest.mark.parametrize("file", ["train.json", "train.jsonl"])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_file_of_one_entry_is_one_entry(tmp_path, prepare, file, indent, mark):
    if file.endswith("l") and (indent or mark):
        return  # JSON lines have neither
    pictures(tmp_path)
    (tmp_path / file).write_bytes(mark + json.dumps(PSALM[1], indent=indent).encode() + b"\n")
    rows, summary, _ = prepare("psalm", tmp_path)
    assert len(rows) == 1 and len(rows[0]["masks"]) == 2 and not summary["skipped"] and summary["images"] == 1


def test_an_object_may_hold_entries_in_a_list_or_by_name_and_others_are_counted(tmp_path, prepare):
    pictures(tmp_path)
    for content in ({"version": "1", "data": PSALM, "authors": ["x"]}, dict(enumerate(PSALM))):
        write_json(tmp_path / "train.json", content)
        check_psalm(prepare("psalm", tmp_path)[0])
    for content in ({"version": 1}, {}):
        write_json(tmp_path / "train.json", content)
        assert "(1 x entry lacks a field, for example train.json at byte 0" in prepare("psalm", tmp_path, status=2)
    write_json(tmp_path / "train.json", [5, "x", PSALM[2]])
    assert prepare("psalm", tmp_path)[1]["skipped"] == {"entry lacks a field": 2}


def test_psalm_annotations_without_segments_mean_no_target(tmp_path, prepare):
    pictures(tmp_path)
    entries = [psalm(1, [[]], "a giraffe"), psalm(2, [[], [polygon(1)]], "a dog")]
    write_json(tmp_path / "grefcoco_val.json", entries)
    rows, summary, _ = prepare("psalm", tmp_path, "--split", "val")
    assert [len(row["masks"]) for row in rows] == [0, 1] and summary["empty"] == 1 and not summary["skipped"]
    assert "giraffe" in rows[0]["messages"][1]["content"]
    np.testing.assert_array_equal(decoded(rows[1]["masks"][0]), by_pycocotools([polygon(1)], SIZE))


def test_classes_of_psalm_entries_are_incomplete(tmp_path):
    pictures(tmp_path)
    entry = psalm(1, [[polygon(1)]], "left dog")
    entry["anns"][0]["category_name"] = "dog"
    write_json(tmp_path / "train.json", [entry])
    (record,) = records("psalm", tmp_path)
    assert record.incomplete_classes == record.present == {"dog"}


SPLIT_FILES = ("refcoco_val", "refcoco_testA", "refcoco_train", "retrieval")


@pytest.mark.parametrize("name", ["psalm", "rec"])
def test_a_split_is_a_word_in_the_name_of_a_file(tmp_path, prepare, name):
    def ids(*arguments):
        return [row["source"]["image_id"] for row in prepare(name, tmp_path, *arguments)[0]]

    pictures(tmp_path)
    for number, file in enumerate(SPLIT_FILES):
        write_image(tmp_path / f"{number}.jpg", SIZE)
        entry = (
            psalm(number, [], "x") if name == "psalm" else {"image": f"{number}.jpg", "sent": "x", "bbox": [1, 2, 9, 9]}
        )
        write_image(tmp_path / "train2014" / f"COCO_train2014_{number:012}.jpg", SIZE)
        write_lines(tmp_path / f"{file}.jsonl", [entry])
    assert [ids("--split", split) for split in ("val", "testA", "train")] == [["0"], ["1"], ["2"]]
    for split in ("test", "testB"):
        assert f"with '{split}' in its name" in prepare(name, tmp_path, "--split", split, status=2)
    assert ids("--split", "test", "--annotations", tmp_path / "refcoco_train.jsonl") == ["2"]
    # A folder that is named holds the split, or is of it.
    (tmp_path / "files").mkdir()
    for file in SPLIT_FILES[:3]:
        (tmp_path / f"{file}.jsonl").rename(tmp_path / "files" / f"{file}.jsonl")
    assert ids("--split", "testA", "--annotations", tmp_path / "files") == ["1"]
    assert "of the split 'testB'" in prepare(name, tmp_path, "--split", "testB", "--annotations", "files", status=2)
    (tmp_path / "of_val").mkdir()
    (tmp_path / "retrieval.jsonl").rename(tmp_path / "of_val" / "part-0.jsonl")
    assert ids("--split", "val", "--annotations", tmp_path / "of_val") == ["3"]


def test_files_of_several_datasets_are_refused_but_parts_of_one_are_read(tmp_path, prepare):
    entry = {"image": "a.jpg", "sent": "a cup", "bbox": [1, 2, 30, 40]}
    write_image(tmp_path / "a.jpg", SIZE)
    for part in (0, 1):
        write_lines(tmp_path / f"refcoco_val-{part:05}-of-00002.jsonl", [entry])
    assert len(prepare("rec", tmp_path, "--split", "val")[0]) == 2
    write_lines(tmp_path / "refcoco+_val.jsonl", [entry])
    error = prepare("rec", tmp_path, "--split", "val", status=2)
    assert "refcoco+_val.jsonl" in error and "expected one dataset" in error
    assert len(prepare("rec", tmp_path, "--split", "val", "--annotations", "refcoco+_val.jsonl")[0]) == 1


def test_broken_files_of_entries(tmp_path, prepare):
    pictures(tmp_path)
    path = write_json(tmp_path / "train.json", PSALM)
    path.write_text(path.read_text()[:-30])
    assert "is not JSON at byte" in prepare("psalm", tmp_path, status=2)
    path.unlink()
    lines = write_lines(tmp_path / "train.jsonl", PSALM)
    lines.write_bytes(lines.read_bytes()[:-30] + b"\n\xff{}\n5\n")
    rows, summary, _ = prepare("psalm", tmp_path)
    assert len(rows) == 3
    assert summary["skipped"] == {"is not JSON": 1, "text is not UTF-8": 1, "entry lacks a field": 1}
    lines.unlink()
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    assert "is not Parquet" in prepare("psalm", tmp_path, status=2)


# ----- GranD-f


CAPTION = "A dog sits beside two cups."


def test_grandf_masks_are_placed_behind_their_phrases(tmp_path, prepare):
    entry = {
        "file_name": "a.jpg", "height": 48, "width": 64, "image_id": "a", "caption": CAPTION,
        "groundings": {
            "two cups": {"token_positives": [18, 26], "rle_masks": [uncompressed(blob(seed=1)), RLE]},
            "A dog": {"token_positives": [[0, 5]], "rle_masks": [RLE]},
            "a cat": {"token_positives": None, "rle_masks": [RLE]},
        },
    }  # fmt: skip
    write_json(tmp_path / "GranDf_HA_GCG_train.json", [entry])
    write_image(tmp_path / "GranDf_HA_images" / "train" / "a.jpg", SIZE)
    rows, summary, _ = prepare("grandf", tmp_path)
    assert rows[0]["messages"][1]["content"] == "<ref>A dog</ref><mask> sits beside <ref>two cups</ref><mask><mask>."
    for mask, expected in zip(rows[0]["masks"], (blob(seed=3), blob(seed=1), blob(seed=3)), strict=True):
        np.testing.assert_array_equal(decoded(mask), expected)
    assert summary["skipped"] == {"phrase is not in its caption, or overlaps another": 1}


def test_grandf_of_refcocog(tmp_path, prepare):
    refs = [{"sentence": "a dog", "bbox": [1, 2, 3, 4], "segmentation": [polygon(1)]}]
    write_json(
        tmp_path / "RefCOCOg_GCG_train.json", [{"1": {"img_file_name": "a.jpg", "caption": CAPTION, "refs": refs}}]
    )
    write_image(tmp_path / "train2014" / "a.jpg", SIZE)
    rows, _, _ = prepare("grandf", tmp_path)
    assert rows[0]["messages"][1]["content"].startswith("<ref>A dog</ref><mask> sits")
    np.testing.assert_array_equal(decoded(rows[0]["masks"][0]), by_pycocotools([polygon(1)], SIZE))


def flickr(number, annotations, **more):
    """An image of Flickr's part in COCO's layout: (image, its annotations)."""
    image = {"id": number, "file_name": f"{number}.jpg", "height": "48", "width": "64", "caption": CAPTION, **more}
    entries = []
    for i, (tokens, mask) in enumerate(annotations):
        rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
        entries.append({
            "id": number * 10 + i, "image_id": number, "category_id": 1, "iscrowd": 0, "area": int(mask.sum()),
            "bbox": coco.toBbox(rle).tolist(), "tokens_positive": tokens,
            "sam_mask": {"size": list(SIZE), "counts": rle["counts"].decode()},
        })  # fmt: skip
    return image, entries


def test_grandf_of_flickr_is_in_cocos_layout_beside_the_others(tmp_path, prepare):
    first = flickr(1, [([[18, 26]], blob(seed=1)), ([[0, 5]], blob(seed=2)), ([[18, 26], [0, 5]], blob(seed=3))])
    second = flickr(2, [([[0, 5]], blob(seed=4)), ([[2, 8]], blob(seed=5)), ([[6, 10]], blob(seed=6))])
    second[1][2]["ignore"] = True
    without, bad = flickr(3, []), flickr(4, [("x", blob(seed=7))])
    folder = tmp_path / "annotations" / "train"
    images, annotations = zip(first, second, without, bad, strict=True)
    content = {"images": images, "annotations": sum(annotations, []), "categories": [{"id": 1, "name": "object"}]}
    write_json(folder / "flickr_mergedGT_GCG_train.json", content)
    write_json(folder / "flickr_mergedGT_GCG_val.json", {**content, "images": images[:1], "annotations": first[1]})
    entry = {"file_name": "a.jpg", "caption": CAPTION, "groundings": {"A dog": {"rle_masks": [RLE]}}}
    write_json(folder / "OpenPsgGCG_train.json", [entry])
    write_image(tmp_path / "coco_2017" / "train2017" / "a.jpg", SIZE)
    for number in (1, 2, 3, 4):
        write_image(tmp_path / "flikcr_30k" / "train" / f"{number}.jpg", SIZE)
    rows, summary, _ = prepare("grandf", tmp_path)
    assert [row["source"]["image_id"] for row in rows[1:]] == ["1", "2"]
    assert rows[1]["messages"][1]["content"] == "<ref>A dog</ref><mask> sits beside <ref>two cups</ref><mask><mask>."
    for mask, seed in zip(rows[1]["masks"], (2, 1, 3), strict=True):
        np.testing.assert_array_equal(decoded(mask), blob(seed=seed))
    assert rows[2]["messages"][1]["content"] == "<ref>A dog</ref><mask> sits beside two cups."
    assert summary["images"] == 5
    assert summary["skipped"] == {
        "phrase is not in its caption, or overlaps another": 1,
        "entry lacks a field": 2,
    }
    assert [row["source"]["image_id"] for row in prepare("grandf", tmp_path, "--split", "val")[0]] == ["1"]


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("entry lacks a field", {"caption": 5}),
        ("entry lacks a field", {"groundings": {}}),
        ("entry lacks a field", {"groundings": {"A dog": {"rle_masks": []}}}),
        ("mask cannot be read", {"groundings": {"A dog": {"rle_masks": [{"size": [48, 64], "counts": "?"}]}}}),
        ("image is missing", {"file_name": "b.jpg"}),
        ("text is empty or holds a placeholder", {"caption": "A dog <image>"}),
    ],
)
def test_grandf_bad_entries_are_counted(tmp_path, prepare, reason, changes):
    entry = {"file_name": "a.jpg", "caption": CAPTION, "groundings": {"A dog": {"rle_masks": [RLE]}}}
    write_json(tmp_path / "train.json", [entry, {**entry, **changes}])
    write_image(tmp_path / "a.jpg", SIZE)
    rows, summary, _ = prepare("grandf", tmp_path, "--images", tmp_path)
    assert len(rows) == 1 and summary["skipped"] == {reason: 1}


# ----- REC


def test_rec_boxes_in_pixels_and_in_thousandths(tmp_path, prepare):
    write_image(tmp_path / "train2014" / "a.jpg", SIZE)
    talk = [
        {"from": "user", "value": "Picture 1: <img>/elsewhere/a.jpg</img>\nThe <ref>left dog</ref>?"},
        {"from": "assistant", "value": "<ref>left dog</ref><box>(250,500),(500,1000)</box><box>(0,0),(125,250)</box>"},
    ]
    entries = [
        {
            "image": "data/coco2014/train2014/a.jpg",
            "sent": "a cup",
            "bbox": [1.5, 2, 30, 40],
            "height": 48,
            "width": 64,
        },
        {"id": "c", "conversations": talk},
    ]
    write_lines(tmp_path / "refcoco_val.jsonl", entries)
    rows, _, _ = prepare("rec", tmp_path, "--split", "val")
    assert rows[0]["objects"]["bbox"] == [[1.5, 2.0, 30.0, 40.0]] and "a cup" in rows[0]["messages"][0]["content"]
    assert rows[1]["objects"]["bbox"] == [[16.0, 24.0, 32.0, 48.0], [0.0, 0.0, 8.0, 12.0]]
    assert rows[1]["messages"][1]["content"].count("<bbox>") == 2 and rows[1]["masks"] == []


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("box is not x1 < x2, y1 < y2 within its image", {"bbox": [30, 2, 3, 40]}),
        ("box is not x1 < x2, y1 < y2 within its image", {"bbox": [1, 2]}),
        ("entry lacks a field", {"sent": ""}),
        ("entry lacks a field", {"bbox": None}),
        ("image has another size than its annotation", {"height": 640}),
        ("image is missing", {"image": "b.jpg"}),
        ("entry lacks a field", {"conversations": [{"value": "<img>a.jpg</img> none"}]}),
    ],
)
def test_rec_bad_entries_are_counted(tmp_path, prepare, reason, changes):
    write_image(tmp_path / "a.jpg", SIZE)
    entry = {"image": "a.jpg", "sent": "a cup", "bbox": [1, 2, 30, 40], "height": 48, "width": 64}
    write_lines(tmp_path / "train.jsonl", [entry, {**entry, **changes}])
    rows, summary, _ = prepare("rec", tmp_path)
    assert len(rows) == 1 and summary["skipped"] == {reason: 1}


# ----- questions


def test_pope(tmp_path, prepare):
    name = "COCO_val2014_000000000009.jpg"
    write_image(tmp_path / "val2014" / name, SIZE)
    entries = [
        {"question_id": i, "image": name, "text": "Is there a dog in the image?", "label": label}
        for i, label in enumerate(("yes", "no", "perhaps"))
    ]
    write_lines(tmp_path / "coco_pope_popular.json", entries)
    rows, summary, _ = prepare("pope", tmp_path, "--split", "popular")
    assert [row["messages"][1]["content"] for row in rows] == ["Yes", "No"]
    assert (
        rows[0]["messages"][0]["content"].startswith("<image>Is there a dog in the image?") and rows[0]["masks"] == []
    )
    assert summary["skipped"] == {"entry lacks a field": 1} and summary["empty"] == 2


def vqa(root, questions, answers):
    write_json(root / "v2_OpenEnded_mscoco_val2014_questions.json", {"info": {}, "questions": questions})
    write_json(root / "v2_mscoco_val2014_annotations.json", {"info": {}, "annotations": answers})
    write_image(root / "val2014" / "COCO_val2014_000000000042.jpg", SIZE)


def test_vqav2_joins_questions_and_answers(tmp_path, prepare):
    questions = [{"image_id": 42, "question": f"What is {i}?", "question_id": 42000 + i} for i in range(4)]
    answers = [
        {"question_id": 42000 + i, "image_id": 42, "multiple_choice_answer": f"a{i}", "answers": []} for i in (2, 0, 1)
    ]
    vqa(tmp_path, [*questions, questions[0]], answers)
    rows, summary, _ = prepare("vqav2", tmp_path, "--split", "val")
    assert [row["messages"][1]["content"] for row in rows] == ["a0", "a1", "a2"]
    assert all(f"What is {i}?" in row["messages"][0]["content"] for i, row in enumerate(rows))
    assert summary["skipped"] == {"id is not in the file": 1, "id occurs more than once": 1}


def test_mask_perception(tmp_path, prepare):
    write_image(tmp_path / "images" / "a.jpg", SIZE)
    Image.fromarray(blob(seed=1).astype(np.uint8) * 255).save(tmp_path / "m.png")
    two = {"masks": [RLE, uncompressed(blob(seed=1))], "options": {"A": "yes", "B": "no"}}
    one = {"options": ["a cat", "a dog"]}
    entries = [
        {"image": "a.jpg", "question": "What is it?", "answer": "a dog", "mask": "m.png", **one},
        {"image": "a.jpg", "question": "Is <mask> left of <mask>?", "answer": "B", **two},
        {"image": "a.jpg", "question": "<image>\nHow many?", "answer": "two"},
        {"image": "a.jpg", "question": "Which?", "answer": "C", "options": ["a", "b"]},
        {"image": "a.jpg", "question": "Two?", "answer": "x", "masks": [RLE, RLE]},
        {"image": "a.jpg", "question": "What?", "answer": "x", "mask": {"polygons": [polygon(1)], "size": [64, 48]}},
    ]  # fmt: skip
    write_lines(tmp_path / "perception.jsonl", entries)
    rows, summary, _ = prepare("mask-perception", tmp_path)
    assert [row["messages"][1]["content"] for row in rows] == ["B", "B", "two"]
    assert rows[0]["messages"][0]["content"].startswith("<image><mask> What is it?\nA. a cat\nB. a dog")
    np.testing.assert_array_equal(decoded(rows[0]["masks"][0]), blob(seed=1))
    np.testing.assert_array_equal(decoded(rows[1]["masks"][1]), blob(seed=1))
    assert summary["skipped"] == {
        "entry lacks a field": 1,
        "masks do not fit the placeholders of the text": 1,
        "mask cannot be read": 1,
    }


def test_mask_perception_with_mask_text_in_the_question(tmp_path, prepare):
    write_image(tmp_path / "coco" / "train2014" / "a.jpg", SIZE)
    mask = codes_to_text([7, 3, 1])
    entries = [
        {"image": "data/coco2014/train2014/a.jpg", "question": f"What is {mask}?\nA. a cat\nB. a dog", "answer": "A"},
        {"image": "a.jpg", "question": f"Which is left, {mask} or {mask}?", "answer": mask, "options": [mask, "none"]},
        {"image": "a.jpg", "question": f"What is {mask[:-3]}?", "answer": "a cat"},
        {"image": "a.jpg", "question": "What is <|mt_end|>?", "answer": "a cat"},
    ]
    write_lines(tmp_path / "perception.jsonl", entries)
    rows, summary, _ = prepare("mask-perception", tmp_path)
    assert rows[0]["messages"][0]["content"] == f"<image>What is {mask}?\nA. a cat\nB. a dog"
    assert rows[0]["messages"][1]["content"] == "A" and rows[0]["masks"] == []
    assert rows[0]["images"] == [str(tmp_path / "coco" / "train2014" / "a.jpg")]
    assert mask in rows[1]["messages"][0]["content"] and len(rows) == 2
    assert summary["skipped"] == {"text is empty or holds a placeholder": 2}


def test_pope_files_of_several_datasets_are_refused(tmp_path, prepare):
    for name in ("coco", "gqa"):
        write_lines(tmp_path / f"{name}_pope_random.json", [{"question_id": 1, "image": "a.jpg", "label": "yes"}])
    assert "expected one dataset" in prepare("pope", tmp_path, status=2)
