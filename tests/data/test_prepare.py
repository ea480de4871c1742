"""The runner: the same rows for any number of processes, limits, seeds, what is left behind; JSON by places."""

import json
import random
import subprocess
import sys

import pytest
from on_disk import coco_annotation, coco_file, polygon, read_rows, write_image, write_json

from himtok_plugin.data.byte_ranges import Ranges, group_number, walk
from himtok_plugin.data.catalog import FORMATS
from himtok_plugin.data.formats.reader import Source
from himtok_plugin.data.prepare import Job
from himtok_plugin.data.tasks import TASKS, TaskOptions


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """60 images of two annotations."""
    root = tmp_path_factory.mktemp("coco")
    images = [{"id": i, "file_name": f"{i:012}.jpg", "height": 48, "width": 64} for i in range(60)]
    annotations = [coco_annotation(i, i % 60, [polygon(i)], category_id=1 + i % 2) for i in range(120)]
    random.Random(0).shuffle(annotations)
    categories = ((1, "dog"), (2, "cat"), (3, "car"))
    write_json(root / "annotations" / "instances_train2017.json", coco_file(images, annotations, categories))
    for i in range(60):
        write_image(root / "train2017" / f"{i:012}.jpg", seed=i)
    return root


ALL_TASKS = [argument for name in TASKS for argument in ("--task", f"{name}=0.7")]


def test_rows_do_not_depend_on_the_number_of_processes(root, prepare):
    alone = prepare("coco", root, *ALL_TASKS)
    two = prepare("coco", root, *ALL_TASKS, "--num_workers", 2)
    assert alone[0] == two[0] and len(alone[0]) > 100
    assert alone[1] | {"seconds": 0} == two[1] | {"seconds": 0}


def test_a_dataset_without_anything_is_an_error_not_an_empty_file(tmp_path, prepare):
    write_json(tmp_path / "annotations" / "instances_train2017.json", coco_file([], [], ((1, "dog"),)))
    error = prepare("coco", tmp_path, status=2)
    assert "holds nothing of split 'train'" in error


def test_reason_seg_is_evaluated_with_the_first_text_unless_asked_otherwise(tmp_path):
    def sentences(name, split, **options):
        return Job(Source(name, tmp_path, split), options=TaskOptions(**options)).options.sentences

    assert [sentences("reasonseg", split) for split in ("train", "val", "test")] == ["each", "first", "first"]
    assert sentences("refcoco", "val") == "each" and sentences("reasonseg", "val", sentences="joined") == "joined"


def test_rows_follow_from_the_seed(root, prepare):
    first, again, other = (prepare("coco", root, *ALL_TASKS, "--seed", seed)[0] for seed in (1, 1, 2))
    assert first == again != other


def test_a_limit_takes_images_by_the_seed_and_a_smaller_one_is_the_beginning_of_a_larger_one(root, prepare):
    ten, thirty = (prepare("coco", root, "--limit", n, "--task", "box_to_mask")[0] for n in (10, 30))
    assert len(ten) == 10 and len(thirty) == 30 and thirty[:10] == ten
    whole = prepare("coco", root, "--task", "box_to_mask")[0]
    assert [row["source"]["image_id"] for row in ten] != [row["source"]["image_id"] for row in whole[:10]]
    other = prepare("coco", root, "--limit", 10, "--task", "box_to_mask", "--seed", 1)[0]
    assert {row["source"]["id"] for row in other} != {row["source"]["id"] for row in ten}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "segmnt"), "task: got 'segmnt', expected one of segment"),
        (("--task", "segment=0"), "got the share 0.0"),
        (("--task", "segment=x"), "expected NAME or NAME=SHARE"),
        (("--limit", "0"), "limit: got 0"),
        (("--max_masks", "0"), "max_masks: got 0"),
        (("--num_workers", "-1"), "num_workers is -1"),
        (("--split", "test"), "--split: got 'test', expected one of train, val"),
        (("--annotations", "no.json"), "annotations: got 'no.json', which does not exist"),
        (("--images", "no"), "images: got 'no', which does not exist"),
    ],
)
def test_bad_arguments_are_one_line(root, prepare, arguments, message):
    assert message in prepare("coco", root, *arguments, status=2)


def test_a_failed_run_leaves_the_old_file_and_nothing_else(root, himtok, tmp_path):
    out = tmp_path / "rows.jsonl"
    out.write_text("old")
    code, _, _ = himtok(
        "prepare", "coco", "--root", root, out, "--num_workers", 0, "--task", "negative", "--split", "val"
    )
    assert code == 2 and out.read_text() == "old" and list(tmp_path.iterdir()) == [out]


def test_what_was_skipped_is_listed_and_forgotten_by_a_better_run(root, himtok, tmp_path):
    out = tmp_path / "rows.jsonl"
    arguments = ("prepare", "coco", "--root", root, out, "--num_workers", 0)
    code, _, error = himtok(*arguments, "--task", "segment_instances", "--images", tmp_path)
    assert code == 0 and "skipped 60: image is missing" in error
    assert len(read_rows(tmp_path / "rows.jsonl.skipped.jsonl")) == 60
    himtok(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_named_annotations_and_images_are_used(root, prepare, tmp_path):
    moved = tmp_path / "elsewhere.json"
    moved.write_bytes((root / "annotations" / "instances_train2017.json").read_bytes())
    rows, _, _ = prepare("coco", tmp_path, "--annotations", moved, "--images", root / "train2017", "--task", "masks")
    assert len(rows) == 120


@pytest.mark.parametrize("name", [*FORMATS, "mix", "check", "tasks"])
def test_every_command_has_help(himtok, name):
    status, out, _ = himtok("prepare", name, "--help")
    assert status == 0 and "Usage: " in out


@pytest.mark.parametrize("name", FORMATS)
def test_every_reader_of_the_catalog_is_there_and_names_what_it_misses(name, prepare, tmp_path):
    assert FORMATS[name].reader_class()
    assert all(task in TASKS for task in FORMATS[name].tasks)
    error = prepare(name, tmp_path, status=2)
    assert str(tmp_path) in error or "--" in error


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from himtok_plugin import cli\n"
        "try: cli.main(['prepare', '--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'numpy', 'PIL', 'swift', 'yaml'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and "refcoco" in result.stdout, result.stderr


def test_converting_imports_neither_torch_nor_swift(root, tmp_path):
    code = (
        "import sys; from himtok_plugin import cli\n"
        f"arguments = ['--root', {str(root)!r}, {str(tmp_path / 'o.jsonl')!r}, '--num_workers', '0']\n"
        "try: cli.main(['prepare', 'coco', *arguments])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'swift', 'transformers', 'datasets'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# ----- JSON by places


def random_json(rng, depth=3):
    kind = rng.randrange(8 if depth else 6)
    if kind == 6:
        return [random_json(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {f'k{i}"\\é': random_json(rng, depth - 1) for i in range(rng.randrange(4))}
    return rng.choice(
        [None, True, rng.randrange(10**9), rng.random() * 1e9, 'a"b\\c\n', "größe {[", "", -0.5, "\u2028"]
    )


@pytest.mark.parametrize("ascii", [True, False])
@pytest.mark.parametrize("indent", [None, 2])
def test_walk_finds_every_element_at_its_place(tmp_path, monkeypatch, ascii, indent):
    path = tmp_path / "a.json"
    for seed in range(25):
        rng = random.Random(seed)
        monkeypatch.setattr("himtok_plugin.data.byte_ranges.CHUNK", rng.choice([1, 3, 17, 1000]))
        content = {f"key {i}": random_json(rng) for i in range(5)} if seed % 2 else [random_json(rng) for _ in range(5)]
        data = json.dumps(content, ensure_ascii=ascii, indent=indent).encode()
        path.write_bytes(b"\xef\xbb\xbf" * (seed % 3 == 0) + data + b"\n")
        whole = path.read_bytes()
        found = {} if seed % 2 else []
        for key, begin, length, _ in walk(path):
            value = json.loads(whole[begin : begin + length]) if length else None
            if seed % 2:
                key = key.encode("latin-1", "ignore").decode()
                if isinstance(content[key], list):
                    found.setdefault(key, []).extend([value] if length else [])
                else:
                    found[key] = value
            else:
                found.append(value)
        assert found == content


@pytest.mark.parametrize(
    "data", [b'{"a": [1, 2', b'{"a"', b'{"a": ', b"[1, 2,", b'["a', b"{a: 1}", b'{"a": [1 2]}', b"[nul]"]
)
def test_walk_refuses_what_is_no_json(tmp_path, data):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="a.json: is not JSON at byte"):
        list(walk(path))


def test_ranges_group_and_forget():
    ranges = Ranges()
    for i, group in enumerate((5, "x", 5, 7, "x")):
        ranges.add(group, i * 10, i)
    assert (
        ranges.of(5) == [(0, 0), (20, 2)] and ranges.of(group_number("x")) == [(10, 1), (40, 4)] and ranges.of(6) == []
    )
    ranges.drop([0])
    assert ranges.of(5) == [(20, 2)] and len(ranges) == 4 and Ranges().of(1) == []
