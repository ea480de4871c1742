"""A file is replaced only by one of its kind: swapped arguments cost no annotations, and no README."""

import json

import pytest

from himtok_plugin.files.output_file import check_replaceable_json, check_replaceable_page, check_replaceable_rows

ROW = json.dumps({"messages": [], "images": ["a.png"]}) + "\n"
COCO = json.dumps({"images": [], "annotations": []})
PAGE = "<!DOCTYPE html>\n<html></html>"
REPORT = json.dumps({"scores": {}, "protocol": {}}, indent=2)
CHECKS = {
    "rows": (check_replaceable_rows, [ROW, ROW * 2, json.dumps({"conversations": []}), json.dumps({"masks": []})]),
    "page": (check_replaceable_page, [PAGE, "\n<html>"]),
    "json": (check_replaceable_json, [REPORT, COCO, "[1, 2]"]),
    "report": (lambda path: check_replaceable_json(path, "scores", "protocol"), [REPORT]),
}
OTHERS = {"text": "# Notes\n", "bytes": "\x00\x01", "rows": ROW * 2, "coco": COCO, "page": PAGE, "pretty": "{\n}"}


@pytest.mark.parametrize("kind", CHECKS)
def test_only_a_file_of_the_same_kind_is_replaced(tmp_path, kind):
    check, same = CHECKS[kind]
    path = tmp_path / "out"
    check(path)
    for content in ["", *same]:
        path.write_text(content)
        check(path)
    taken = {"rows": ["rows"], "page": ["page"], "json": ["coco", "pretty"], "report": []}[kind]
    for name, content in OTHERS.items():
        path.write_text(content)
        if name not in taken:
            with pytest.raises(ValueError, match=f"^{path}: got a file that is there already and is not"):
                check(path)
        assert path.read_text() == content
    with pytest.raises(ValueError, match="got a folder, expected a file to write"):
        check(tmp_path)


def test_prepare_mix_and_check_keep_files_of_others(himtok, tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg")
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 6, 1, 6, 4]], "iscrowd": 0}
    image = {"id": 1, "file_name": "a.jpg", "height": 6, "width": 8}
    coco = {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "road"}]}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    before = (tmp_path / "coco.json").read_bytes()
    status, _, err = himtok("prepare", "coco", tmp_path / "coco.json", "--root", tmp_path)
    assert status == 2 and "coco.json: got a file that is there already and is not rows of samples" in err
    assert (tmp_path / "coco.json").read_bytes() == before
