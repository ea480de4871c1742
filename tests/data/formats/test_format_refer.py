"""REFER files and gRefCOCO: expressions, splits, masks; pickles with anything but plain data are refused."""

import json
import os
import pickle

import numpy as np
import pytest
from on_disk import (
    blob,
    by_pycocotools,
    coco_annotation,
    coco_file,
    decoded,
    polygon,
    records,
    uncompressed,
    write_image,
    write_json,
)

SIZE = (48, 64)


def sentences(*texts):
    return [{"tokens": t.split(), "raw": t.title(), "sent_id": i, "sent": t} for i, t in enumerate(texts)]


def ref(id, image_id, ann_id, split, *texts, **more):
    entry = {"sent_ids": list(range(len(texts))), "file_name": f"COCO_train2014_{image_id:012}_{id}.jpg"}
    return {**entry, "ann_id": ann_id, "ref_id": id, "image_id": image_id, "split": split,
            "sentences": sentences(*texts), "category_id": 1, **more}  # fmt: skip


ANNOTATIONS = [
    coco_annotation(100, 1, [polygon(1)]),
    coco_annotation(101, 1, [polygon(2), polygon(3)], category_id=18),
    coco_annotation(102, 2, uncompressed(blob(seed=4)), category_id=18),
    coco_annotation(103, 2, [polygon(5)], category_id=18),
]
REFS = [
    ref(0, 1, 100, "train", "left dog", "the brown dog"),
    ref(1, 2, 102, "val", "red light"),
    ref(2, 1, 101, "train", "traffic light"),
    ref(3, 2, 103, "testA", "green light"),
]


def lay_out(root, name="refcoco", file="refs(unc).p", refs=REFS, protocol=2):
    folder = root / name
    images = [{"id": i, "file_name": f"COCO_train2014_{i:012}.jpg", "height": 48, "width": 64} for i in (1, 2)]
    write_json(folder / "instances.json", coco_file(images, ANNOTATIONS))
    for i in (1, 2):
        write_image(root / "train2014" / f"COCO_train2014_{i:012}.jpg", SIZE)
    if file.endswith(".p"):
        (folder / file).write_bytes(pickle.dumps(refs, protocol))
    else:
        write_json(folder / file, refs)
    return folder / file


@pytest.mark.parametrize(
    ("name", "file", "protocol"),
    [("refcoco", "refs(unc).p", 0), ("refcoco+", "refs(unc).p", 2), ("refcocog", "refs(umd).p", 4)],
)
def test_every_expression_is_a_sample_with_its_referents_mask(tmp_path, prepare, name, file, protocol):
    lay_out(tmp_path, name, file, protocol=protocol)
    rows, _, _ = prepare(name, tmp_path)
    assert [row["source"]["id"] for row in rows] == ["0", "0", "2"]
    segmentations = {str(a["id"]): a["segmentation"] for a in ANNOTATIONS}
    for row, text, annotation in zip(
        rows, ("left dog", "the brown dog", "traffic light"), ("100", "100", "101"), strict=True
    ):
        assert text in row["messages"][0]["content"]
        assert row["messages"][1]["content"].count("<mask>") == 1
        np.testing.assert_array_equal(decoded(row["masks"][0]), by_pycocotools(segmentations[annotation], SIZE))
        assert row["images"] == [str(tmp_path / "train2014" / "COCO_train2014_000000000001.jpg")]
        assert row["source"]["dataset"] == name and row["source"]["split"] == "train"


def test_a_split_is_a_field_of_the_references(tmp_path, prepare):
    lay_out(tmp_path)
    assert [row["source"]["id"] for row in prepare("refcoco", tmp_path, "--split", "val")[0]] == ["1"]
    assert "['testA', 'train', 'val']" in prepare("refcoco", tmp_path, "--split", "testB", status=2)
    assert "expected one of train, val, testA, testB" in prepare("refcoco", tmp_path, "--split", "dev", status=2)


def test_a_sample_for_each_sentence_for_a_random_one_or_for_all_joined(tmp_path, prepare):
    lay_out(tmp_path)
    joined, _, _ = prepare("refcoco", tmp_path, "--sentences", "joined")
    assert "Meet all the descriptions: 1. left dog. 2. the brown dog." in joined[0]["messages"][0]["content"]
    assert len(joined) == 2
    assert len(prepare("refcoco", tmp_path, "--sentences", "one")[0]) == 2
    assert "sentences: got 'two'" in prepare("refcoco", tmp_path, "--sentences", "two", status=2)


def test_a_python_2_pickle_is_read(tmp_path, prepare):
    path = lay_out(tmp_path)
    plain = ref(0, 1, 100, "train", "left dog")
    # What Python 2 writes for 'caf\xc3\xa9' (UTF-8) and for '\xff', which is no UTF-8.
    for text, expected in ((b"caf\xc3\xa9", "café"), (b"\xff", None)):
        data = pickle.dumps([plain], 0).replace(b"Vleft dog\n", b"S'" + repr(text)[2:-1].encode() + b"'\n")
        path.write_bytes(data)
        if expected:
            assert expected in prepare("refcoco", tmp_path)[0][0]["messages"][0]["content"]
        else:
            assert "1 x text is not UTF-8" in prepare("refcoco", tmp_path, status=2)


def test_an_entry_that_is_no_reference_is_counted(tmp_path, prepare):
    path = lay_out(tmp_path)
    expected = prepare("refcoco", tmp_path)[0]
    path.write_bytes(pickle.dumps([None, *REFS]))
    rows, summary, _ = prepare("refcoco", tmp_path)
    assert rows == expected and summary["skipped"] == {"entry lacks a field": 1}


class Malicious:
    def __reduce__(self):
        return os.system, ("touch /tmp/himtok_was_here",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps(Malicious()), "the pickle asks for posix.system"),
        (pickle.dumps([np.float64(3)]), "the pickle asks for numpy"),
        (pickle.dumps(REFS)[:-40], "cannot be unpickled"),
        (b"no pickle", "cannot be unpickled"),
        (b"\x82\x01.", "cannot be unpickled"),  # a registered extension
        (pickle.dumps({"refs": 1}), "expected a list of references"),
        (pickle.dumps([1, 2]), "expected a list of references"),
    ],
)
def test_a_pickle_of_anything_but_plain_data_is_refused(tmp_path, prepare, data, message):
    lay_out(tmp_path).write_bytes(data)
    assert message in prepare("refcoco", tmp_path, status=2)
    assert not os.path.exists("/tmp/himtok_was_here")


@pytest.mark.parametrize(
    ("reason", "bad"),
    [
        ("id is not in the file", ref(9, 1, 555, "train", "x")),
        ("id is not in the file", ref(9, 77, 100, "train", "x")),
        ("id occurs more than once", ref(0, 1, 100, "train", "x")),
        ("entry lacks a field", {"ref_id": 9, "split": "train"}),
        ("entry lacks a field", ref(9, 1, 100, "train", " ")),
        ("text is empty or holds a placeholder", ref(9, 1, 100, "train", "a <mask> here")),
        ("text is empty or holds a placeholder", ref(9, 1, 100, "train", "a <|mt_start|> here")),
    ],
)
def test_a_bad_reference_is_counted(tmp_path, prepare, reason, bad):
    lay_out(tmp_path, refs=[*REFS, bad])
    rows, summary, _ = prepare("refcoco", tmp_path)
    assert len(rows) == 3 and summary["skipped"] == {reason: 1}
    assert reason in prepare("refcoco", tmp_path, "--strict", status=2)


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        ("mask has no pixels", {"segmentation": [[5, 5, 5, 5, 5, 5]]}),
        ("mask cannot be read", {"segmentation": [[5, 5, 5]]}),
        ("unknown category", {"category_id": 5}),
        ("mask cannot be read", {"segmentation": {"size": [64, 48], "counts": [64 * 48]}}),
    ],
)
def test_a_bad_annotation_skips_the_expressions_that_refer_to_it(tmp_path, prepare, reason, spoil):
    path = lay_out(tmp_path).parent / "instances.json"
    content = json.loads(path.read_text())
    content["annotations"][1].update(spoil)
    write_json(path, content)
    rows, summary, _ = prepare("refcoco", tmp_path)
    assert [row["source"]["id"] for row in rows] == ["0", "0"] and summary["skipped"] == {reason: 1}
    assert reason in prepare("refcoco", tmp_path, "--strict", status=2)


def test_a_crowd_may_be_referred_to(tmp_path, prepare):
    path = lay_out(tmp_path).parent / "instances.json"
    content = json.loads(path.read_text())
    crowd = {"segmentation": uncompressed(blob(seed=4)), "iscrowd": 1}
    content["annotations"][1].update(crowd)
    write_json(path, content)
    rows, summary, _ = prepare("refcoco", tmp_path)
    np.testing.assert_array_equal(decoded(rows[2]["masks"][0]), blob(seed=4))
    assert not summary["skipped"]


def test_grefcoco_has_none_one_and_several_targets(tmp_path, prepare):
    refs = [
        ref(0, 1, [100], "train", "left dog", no_target=False, category_id=[1]),
        ref(1, 1, [100, 101], "train", "both of them", no_target=False, category_id=[1, 18]),
        ref(2, 1, [-1], "train", "the giraffe", no_target=True, category_id=[-1]),
    ]
    lay_out(tmp_path, "grefcoco", "grefs(unc).json", refs)
    rows, summary, _ = prepare("grefcoco", tmp_path)
    assert [len(row["masks"]) for row in rows] == [1, 2, 0] and summary["empty"] == 1
    own = [by_pycocotools(a["segmentation"], SIZE) for a in ANNOTATIONS]
    for mask, expected in zip(rows[1]["masks"], own, strict=False):
        np.testing.assert_array_equal(decoded(mask), expected)
    assert rows[1]["messages"][1]["content"].count("<mask>") == 2
    assert "giraffe" in rows[2]["messages"][1]["content"]
    merged, _, _ = prepare("grefcoco", tmp_path, "--merge_targets")
    np.testing.assert_array_equal(decoded(merged[1]["masks"][0]), own[0] | own[1])
    tight, summary, _ = prepare("grefcoco", tmp_path, "--max_masks", 1)
    assert len(tight) == 2 and summary["skipped"] == {"more objects than max_masks": 1}


def test_classes_with_objects_that_no_expression_refers_to_are_incomplete(tmp_path):
    lay_out(tmp_path, refs=[ref(0, 1, 100, "train", "left dog"), ref(1, 2, 102, "train", "red light")])
    path = tmp_path / "refcoco" / "instances.json"
    first, second = records("refcoco", tmp_path)
    assert first.incomplete_classes == {"traffic light"} == second.incomplete_classes
    assert first.present == {"dog", "traffic light"} and second.present == {"traffic light"}
    content = json.loads(path.read_text())
    content["annotations"][3]["image_id"] = 1
    content["annotations"].append({**content["annotations"][2], "category_id": 1})  # of an id that is taken
    write_json(path, content)
    second = list(records("refcoco", tmp_path))[1]
    assert second.incomplete_classes == {"dog"} and second.present == {"dog", "traffic light"}


def test_a_truncated_grefcoco_is_an_error(tmp_path, prepare):
    path = lay_out(tmp_path, "grefcoco", "grefs(unc).json")
    path.write_text(json.dumps(REFS)[:-9])
    assert "is not JSON" in prepare("grefcoco", tmp_path, status=2)


def test_negatives_are_expressions_of_other_images_whose_class_is_absent(tmp_path, prepare):
    annotations = [coco_annotation(100, 1, [polygon(1)]), coco_annotation(102, 2, [polygon(2)], category_id=18)]
    path = lay_out(tmp_path, refs=[ref(0, 1, 100, "train", "left dog"), ref(1, 2, 102, "train", "red light")])
    images = [{"id": i, "file_name": f"COCO_train2014_{i:012}.jpg", "height": 48, "width": 64} for i in (1, 2)]
    write_json(path.parent / "instances.json", coco_file(images, annotations))
    rows, _, _ = prepare("refcoco", tmp_path, "--task", "negative")
    asked = {row["source"]["image_id"]: row for row in rows}
    for id, others in (("1", ("red light", "traffic light")), ("2", ("left dog", "dog"))):
        question, answer = (message["content"] for message in asked[id]["messages"])
        assert any(other in question for other in others) and any(other in answer for other in others)
        assert asked[id]["masks"] == [] and "<mask>" not in answer


def test_an_image_with_all_classes_has_no_negative_which_is_counted(tmp_path, prepare):
    lay_out(tmp_path)  # image 1 has both classes
    error = prepare("refcoco", tmp_path, "--task", "negative", "--split", "train", status=2)
    assert "2 x no expression of another image fits" in error


def test_missing_files_are_named(tmp_path, prepare):
    assert "found none of refcoco/refs(unc).p" in prepare("refcoco", tmp_path, status=2)
    assert "--root" in prepare("refcoco", tmp_path / "nowhere", status=2)
    path = lay_out(tmp_path)
    (path.parent / "instances.json").unlink()
    assert "instances.json" in prepare("refcoco", tmp_path, status=2)
