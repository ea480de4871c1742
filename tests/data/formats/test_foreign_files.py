"""For every dataset of the catalog: files as other programs, people and machines write them are read as if they were
written here: their names, encodings, splits, ids and sizes."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from on_disk import decoded
from tiny_datasets import H, W, write

from himtok_plugin.data.catalog import FORMATS

# Their annotations name no images; these are found by the names of annotations.
WITHOUT_NAMES = {"reasonseg", "ade20k", "voc", "pascal-context", "cityscapes", "sa1b", "vqav2", "yolo", "png"}
WITH_NAMES = [name for name in FORMATS if name not in WITHOUT_NAMES]
TEXTS = (".json", ".jsonl", ".xml", ".yaml", ".txt")
FOREIGN_NAMES = {
    "backslashes": "photos\\day1\\{}",
    "another Windows machine": "C:\\Users\\Bob\\my photos\\{}",
    "another Linux machine": "/home/other/dataset/{}",
    "Label Studio's uploads": "/data/upload/1/{}",
    "Label Studio's local files": "/data/local-files/?d=day1/{}",
    "Datumaro's folder": "data/{}",
    "a URL with a query": "https://host.org/x/{}?token=a.b&x=1",
    "a bucket": "s3://bucket/key/{}",
    "percent-encoded": "my%20photos/{}",
    "another folder above": "../elsewhere/{}",
}


def text_files(tiny):
    return [path for path in tiny.annotations if path.suffix in TEXTS]


def rename_images(tiny, form):
    """Give the images other names in the annotations; `form` contains {} for the base name."""
    for path in text_files(tiny):
        text = path.read_text(encoding="utf-8")
        for image in tiny.images:
            other = form(image.name)
            other = json.dumps(other)[1:-1] if path.suffix != ".xml" else other.replace("&", "&amp;")
            text = re.sub(rf'"[^"]*{re.escape(image.name)}"', lambda _, other=other: f'"{other}"', text)
        path.write_text(text, encoding="utf-8")


def essence(rows):
    """What a row says, without the place where it was read."""
    return [
        (row.get("messages"), row["masks"], [Path(image).name.lower() for image in row.get("images", ())])
        for row in rows
    ]


FEW = ("another Windows machine", "Label Studio's local files", "a URL with a query")


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, kind) for name in WITH_NAMES for kind in (FOREIGN_NAMES if name in ("coco-json", "cvat") else FEW)],
)
def test_images_are_found_by_names_of_other_machines(name, form, tmp_path, prepare):
    tiny = write(name, tmp_path / "data")
    expected = prepare(name, tiny.root)[0]
    rename_images(tiny, FOREIGN_NAMES[form].format)
    rows, summary, _ = prepare(name, tiny.root)
    assert essence(rows) == essence(expected) and not summary["skipped"]


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - {"sa1b", "yolo", "png"}))
def test_images_are_found_with_another_case_of_their_names(name, tmp_path, prepare):
    tiny = write(name, tmp_path / "data")
    expected = prepare(name, tiny.root)[0]
    for image in tiny.images:
        image.rename(image.with_name(image.stem.upper() + image.suffix.upper()))
    rows, summary, _ = prepare(name, tiny.root)
    assert essence(rows) == essence(expected) and not summary["skipped"]


@pytest.mark.parametrize("name", [*WITH_NAMES, "vqav2", "reasonseg"])
def test_images_are_found_in_a_subfolder(name, tmp_path, prepare):
    tiny = write(name, tmp_path / "data")
    expected = prepare(name, tiny.root)[0]
    for image in tiny.images:
        below = image.parent / "day1"
        below.mkdir(exist_ok=True)
        image.rename(below / image.name)
    rows, summary, _ = prepare(name, tiny.root)
    assert essence(rows) == essence(expected) and not summary["skipped"]


@pytest.mark.parametrize("name", WITH_NAMES)
def test_names_that_fit_several_images_are_listed_and_the_rest_goes_on(name, tmp_path, prepare):
    tiny = write(name, tmp_path / "data")
    first, second = tiny.images
    for folder, source in (("day1", first), ("day2", second)):
        (first.parent / folder).mkdir()
        shutil.copy(source, first.parent / folder / first.name)
    first.unlink()
    rows, summary, entries = prepare(name, tiny.root)
    assert rows and summary["skipped"] == {"name fits several files": 1}
    (detail,) = [entry["detail"] for entry in entries if entry["reason"] == "name fits several files"]
    assert f"day1/{first.name}" in detail and f"day2/{first.name}" in detail
    assert "name fits several files" in prepare(name, tiny.root, "--strict", status=2)


@pytest.mark.parametrize("name", FORMATS)
def test_a_byte_order_mark_changes_nothing(name, tmp_path, prepare):
    tiny = write(name, tmp_path / "data")
    expected = prepare(name, tiny.root)[0]
    for path in text_files(tiny):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    rows, summary, _ = prepare(name, tiny.root)
    assert essence(rows) == essence(expected) and not summary["skipped"]


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
@pytest.mark.parametrize("name", FORMATS)
def test_other_encodings_are_read_or_named_with_the_file(name, encoding, tmp_path, prepare, himtok):
    tiny = write(name, tmp_path / "data")
    expected = prepare(name, tiny.root)[0]
    for path in text_files(tiny):
        whole = path.read_bytes()
        text = whole.decode().replace("thingy", "thingé") if encoding == "latin-1" else whole.decode()
        if encoding == "utf-16" and path.suffix == ".xml":
            text = text.replace('encoding="utf-8"', 'encoding="utf-16"')
        path.write_bytes(text.encode(encoding))
        out = tmp_path / "again.jsonl"
        status, _, error = himtok("prepare", name, "--root", tiny.root, out, "--num_workers", 0)
        if status == 0 and "skipped " not in error:
            rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
            # Text in cp1252 is read where the authors of the dataset read it.
            assert essence(rows) == essence(expected) or name == "reasonseg" or text == whole.decode(), path
        else:
            listed = Path(f"{out}.skipped.jsonl")
            said = error + (listed.read_text(encoding="utf-8") if listed.exists() else "")
            assert path.name in said and ("UTF-" in said), (path, said)
        path.write_bytes(whole)


OWN = [name for name, format in FORMATS.items() if format.splits[0] == "all" and "val" in format.splits]


@pytest.mark.parametrize("split", ["Train", "TRAIN", "training", "train"])
@pytest.mark.parametrize("name", [name for name, format in FORMATS.items() if "train" in format.splits[0]])
def test_a_split_may_be_written_in_any_case(name, split, tmp_path, prepare):
    tiny = write(name, tmp_path / "data")
    assert prepare(name, tiny.root, "--split", split)[0] == prepare(name, tiny.root)[0]


def write_splits(name, root, form="{}"):
    """The dataset as three splits, each in a folder or file of its name."""
    for split in ("train", "valid", "test"):
        tiny = write(name, root / "made" / split)
        below = root / form.format(split)
        if name == "coco-json":
            below.mkdir(parents=True)
            shutil.copy(tiny.root / "annotations.json", below / "_annotations.coco.json")
            for image in tiny.images:
                shutil.copy(image, below / image.name)
        elif name == "yolo":
            shutil.copytree(tiny.root / "images" / "train", below / "images")
            shutil.copytree(tiny.root / "labels" / "train", below / "labels")
            names = "names: [thingy]\ntrain: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
            (root / "data.yaml").write_text(names)
        elif name == "mask-perception":
            (root / "images").mkdir(exist_ok=True)
            for image in tiny.images:
                shutil.copy(image, root / "images" / image.name)
            shutil.copy(tiny.root / "perception.jsonl", root / f"{form.format(split)}.jsonl")
        else:
            shutil.copytree(tiny.root, below)
            if name == "png":
                (below / "expressions.json").unlink()
    shutil.rmtree(root / "made")


@pytest.mark.parametrize("form", ["{}", "Capital"])
@pytest.mark.parametrize("name", OWN)
def test_all_splits_are_read_without_a_flag_and_each_by_its_names(name, form, tmp_path, prepare):
    root = tmp_path / "data"
    write_splits(name, root)
    if form == "Capital":
        for folder in list(root.iterdir()):
            if folder.stem in ("train", "valid", "test"):
                folder.rename(folder.with_name(folder.name.capitalize()))
    task = ("--task", "converse" if name == "mask-perception" else "masks")
    rows, summary, _ = prepare(name, root, *task)
    one, *others = (len(prepare(name, root, "--split", split, *task)[0]) for split in ("train", "val", "valid", "test"))
    assert one > 0 and others == [one] * 3 and len(rows) == 3 * one and not summary["skipped"]


def change_sizes(tiny, change):
    """Change the values of all heights and widths of images in JSON and XML."""

    def visit(value):
        if isinstance(value, dict):
            for key, inner in list(value.items()):
                if key in ("height", "width", "imageHeight", "imageWidth", "original_height", "original_width"):
                    new = change(inner)
                    if new is KeyError:
                        del value[key]
                    else:
                        value[key] = new
                else:
                    visit(inner)
        elif isinstance(value, list):
            for inner in value:
                visit(inner)

    for path in text_files(tiny):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".xml":
            new = {str(side): change(side) for side in (H, W)}
            for side, value in new.items():
                attribute = "" if value is KeyError else f'="{"" if value is None else value}"'
                text = re.sub(rf'(height|width)="{side}"', rf"\1{attribute}" if attribute else "", text)
            path.write_text(text, encoding="utf-8")
        elif path.suffix in (".json", ".jsonl"):
            documents = [json.loads(line) for line in text.splitlines()] if "}\n{" in text else [json.loads(text)]
            visit(documents)
            path.write_text("\n".join(map(json.dumps, documents)) + "\n", encoding="utf-8")


WITH_SIZES = [name for name in WITH_NAMES if name not in ("grandf", "pope", "mask-perception")]
SIZES = {
    "missing": (lambda side: KeyError, False),
    "null": (lambda side: None, False),
    "text": (str, False),
    "whole floats": (float, False),
    "text of floats": (lambda side: f"{side}.0", False),
    "zero": (lambda side: 0, True),
    "negative": (lambda side: -1, True),
    "words": (lambda side: "tall", True),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in WITH_SIZES for kind in (SIZES if name in ("labelme", "cvat") else ("null", "zero"))],
)
def test_without_a_size_in_the_annotations_the_images_own_counts(name, kind, tmp_path, prepare):
    change, is_bad = SIZES[kind]
    tiny = write(name, tmp_path / "data")
    expected = prepare(name, tiny.root)[0]
    change_sizes(tiny, change)
    rows, summary, _ = prepare(name, tiny.root)
    assert essence(rows) == essence(expected) and not summary["skipped"]
    notes = [note for note in summary["notes"] if "size in the annotations is no size" in note]
    assert len(notes) == is_bad
    assert not is_bad or notes[0].startswith("2 times: ")


def change_ids(tiny, change):
    keys = {"id", "image_id", "category_id", "ann_id", "ref_id", "question_id"}

    def visit(value):
        if isinstance(value, dict):
            return {
                key: change(inner) if key in keys and isinstance(inner, int) else
                [change(id) for id in inner] if key in keys and isinstance(inner, list) else visit(inner)
                for key, inner in value.items()
            }  # fmt: skip
        return [visit(inner) for inner in value] if isinstance(value, list) else value

    for path in text_files(tiny):
        if path.suffix in (".json", ".jsonl"):
            text = path.read_text(encoding="utf-8")
            documents = [json.loads(line) for line in text.splitlines()] if "}\n{" in text else [json.loads(text)]
            path.write_text("\n".join(json.dumps(visit(each)) for each in documents) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("reasonseg", "yolo", "cvat", "png")])
def test_ids_are_compared_by_their_values(name, tmp_path, prepare):
    tiny = write(name, tmp_path / "data")
    expected = prepare(name, tiny.root)[0]
    forms = iter([float, str, lambda id: f"{id}.0", lambda id: id] * 100)
    change_ids(tiny, lambda id: next(forms)(id))  # each in another form
    rows, summary, _ = prepare(name, tiny.root)
    assert not summary["skipped"]
    assert essence(rows) == essence(expected)


IN_COCO_LAYOUT = ("coco", "lvis", "paco", "coco-stuff", "coco-json")


@pytest.mark.parametrize("name", IN_COCO_LAYOUT)
@pytest.mark.parametrize("id", [0, 1, "a"])
def test_annotation_ids_that_begin_anew_are_no_duplicates(name, id, tmp_path, prepare):
    tiny = write(name, tmp_path / "data")
    (path,) = text_files(tiny)
    content = json.loads(path.read_text())
    second = {**content["annotations"][0], "segmentation": [[1, 1, 9, 1, 9, 9]], "bbox": [1, 1, 8, 8]}
    content["annotations"].append(second)
    for annotation in content["annotations"]:
        annotation["id"] = id
    path.write_text(json.dumps(content))
    rows, summary, _ = prepare(name, tiny.root, "--task", "masks")
    assert len(rows) == 3 and not summary["skipped"]
    content["annotations"].append(second)  # the same again
    path.write_text(json.dumps(content))
    rows, summary, _ = prepare(name, tiny.root, "--task", "masks")
    assert len(rows) == 3 and summary["skipped"] == {"id occurs more than once": 1}


@pytest.mark.parametrize("folder", ["masks", "labels", "SegmentationClass", "gt", "instance_masks"])
def test_a_mask_of_the_images_name_is_not_taken_for_the_image(folder, tmp_path, prepare):
    tiny = write("labelme", tmp_path / "data")
    (tiny.root / folder).mkdir()
    tiny.images[0].rename(tiny.root / folder / tiny.images[0].name)
    rows, summary, _ = prepare("labelme", tiny.root, "--task", "masks")
    assert len(rows) == 1 and summary["skipped"] == {"image is missing": 1}
    tiny.images[1].rename(tiny.root / folder / tiny.images[1].name)
    again, _, _ = prepare("labelme", tiny.root, "--task", "masks", "--images", tiny.root / folder)
    assert len(again) == 2  # but the user may say so


@pytest.mark.parametrize("form", ["{}", "C:\\x\\{}", "https://host/a/{}?t=1", "masks/{}", "M/{}"])
def test_masks_are_found_by_names_of_other_machines_too(form, tmp_path, prepare):
    tiny = write("mask-perception", tmp_path / "data")
    (path,) = text_files(tiny)
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    tiny.map("masks/m.png", decoded(entries[0]["mask"]) * np.uint8(255))
    expected = prepare("mask-perception", tiny.root)[0]
    entries[0]["mask"] = form.format("m.png")
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert essence(prepare("mask-perception", tiny.root)[0]) == essence(expected)


@pytest.mark.parametrize("form", ["{}", "C:\\maps\\{}"])
def test_panoptic_maps_are_found_by_names_of_other_machines_too(form, tmp_path, prepare):
    tiny = write("coco-panoptic", tmp_path / "data")
    expected = prepare("coco-panoptic", tiny.root)[0]
    path = next(path for path in text_files(tiny))
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["file_name"] = form.format(annotation["file_name"].upper())
    path.write_text(json.dumps(content))
    assert prepare("coco-panoptic", tiny.root)[0] == expected


def test_cvats_subsets_of_any_name_are_read_without_a_flag(tmp_path, prepare):
    tiny = write("coco-json", tmp_path / "data")
    content = json.loads((tiny.root / "annotations.json").read_text())
    for i, subset in enumerate(("Train", "Night")):
        own = {**content, "images": content["images"][i : i + 1], "annotations": content["annotations"][i : i + 1]}
        tiny.json(f"annotations/instances_{subset}.json", own)
        (tiny.root / "images" / subset).mkdir()
        tiny.images[i].rename(tiny.root / "images" / subset / tiny.images[i].name)
    (tiny.root / "annotations.json").unlink()
    rows, summary, _ = prepare("coco-json", tiny.root, "--task", "masks")
    assert len(rows) == 2 and not summary["skipped"]
    for split in ("Train", "train"):
        assert len(prepare("coco-json", tiny.root, "--split", split, "--task", "masks")[0]) == 1


def test_the_images_of_a_split_are_not_those_of_another_one_with_equal_names(tmp_path, prepare):
    root = tmp_path / "data"
    write_splits("coco-json", root)
    (root / "valid" / "000000000001.jpg").unlink()
    rows, summary, entries = prepare("coco-json", root, "--split", "val", "--task", "masks")
    assert len(rows) == 1 and summary["skipped"] == {"image is missing": 1}


def test_a_split_that_the_yaml_names_and_is_not_there_is_listed(tmp_path, prepare):
    root = tmp_path / "data"
    write_splits("yolo", root)
    shutil.rmtree(root / "test")
    rows, summary, entries = prepare("yolo", root, "--task", "masks")
    assert len(rows) == 4 and summary["skipped"] == {"split is missing": 1} and "test" in entries[0]["detail"]


def test_images_that_two_splits_of_yolo_share_are_read_once(tmp_path, prepare):
    tiny = write("yolo", tmp_path / "data")
    (tiny.root / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [thingy]\n")
    rows, summary, _ = prepare("yolo", tiny.root, "--task", "masks")
    assert len(rows) == 2 and not summary["skipped"]


def test_label_studios_yolo_export_has_a_list_of_classes_only(tmp_path, prepare):
    tiny = write("yolo", tmp_path / "data")
    expected = prepare("yolo", tiny.root)[0]
    (tiny.root / "data.yaml").unlink()
    for kind in ("images", "labels"):
        for path in (tiny.root / kind / "train").iterdir():
            path.rename(tiny.root / kind / path.name)
        (tiny.root / kind / "train").rmdir()
    (tiny.root / "classes.txt").write_text("thingy\n")
    assert essence(prepare("yolo", tiny.root)[0]) == essence(expected)


def test_a_dataset_of_which_nothing_is_found_names_the_splits_too(tmp_path, prepare):
    (tmp_path / "data").mkdir()
    error = prepare("coco-json", tmp_path / "data", status=2)
    assert "annotations.json" in error and "train, val, test" in error


def test_mixtures_and_phrasings_may_begin_with_a_byte_order_mark(tmp_path, himtok):
    tiny = write("labelme", tmp_path / "data")
    mixture, prompts = tmp_path / "mix.yaml", tmp_path / "prompts.yaml"
    mixture.write_text("parts: [{dataset: labelme, root: data, split: All, prompts: prompts.yaml}]", "utf-8-sig")
    prompts.write_text('segment_class: {questions: ["Show the {category}."]}', "utf-16")
    status, _, error = himtok("prepare", "mix", mixture, tmp_path / "out.jsonl", "--num_workers", 0)
    assert status == 0, error
    assert "Show the thingy." in (tmp_path / "out.jsonl").read_text(encoding="utf-8") and tiny.images
    mixture.write_bytes("parts: [{rows: größe.jsonl}]".encode("latin-1"))
    status, _, error = himtok("prepare", "mix", mixture, tmp_path / "out.jsonl")
    assert status == 2 and "mix.yaml: got byte 0xf6" in error and error.count("\n") == 1
