"""`himtok prepare`: the same samples for any number of processes, limits, seeds, failed runs."""

import random
import subprocess
import sys

import pytest
from on_disk import coco_annotation, coco_file, polygon, read_rows, write_image, write_json

from himtok_plugin.data.catalog import FORMATS
from himtok_plugin.data.formats.reader import Source
from himtok_plugin.data.prepare import PrepareJob
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


def test_samples_do_not_depend_on_the_number_of_processes(root, prepare):
    alone = prepare("coco", root, *ALL_TASKS)
    two = prepare("coco", root, *ALL_TASKS, "--num_workers", 2)
    assert alone[0] == two[0] and len(alone[0]) > 100
    assert alone[1] | {"seconds": 0} == two[1] | {"seconds": 0}


def test_an_empty_dataset_is_an_error_and_leaves_no_file(tmp_path, prepare):
    write_json(tmp_path / "annotations" / "instances_train2017.json", coco_file([], [], ((1, "dog"),)))
    error = prepare("coco", tmp_path, status=2)
    assert "has no images of the split 'train'" in error


def test_reason_seg_is_evaluated_with_the_first_text_by_default(tmp_path):
    def sentences(name, split, **options):
        return PrepareJob(Source(name, tmp_path, split), options=TaskOptions(**options)).options.sentences

    assert [sentences("reasonseg", split) for split in ("train", "val", "test")] == ["each", "first", "first"]
    assert sentences("refcoco", "val") == "each" and sentences("reasonseg", "val", sentences="joined") == "joined"


def test_the_seed_decides_the_samples(root, prepare):
    first, again, other = (prepare("coco", root, *ALL_TASKS, "--seed", seed)[0] for seed in (1, 1, 2))
    assert first == again != other


def test_a_limit_draws_random_images_and_a_smaller_limit_gives_a_prefix(root, prepare):
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


def test_skipped_annotations_are_listed_and_a_run_without_any_deletes_the_list(root, himtok, tmp_path):
    out = tmp_path / "rows.jsonl"
    arguments = ("prepare", "coco", "--root", root, out, "--num_workers", 0)
    code, _, error = himtok(*arguments, "--task", "segment_instances", "--images", tmp_path)
    assert code == 2 and "got no rows of 60 images for --task segment_instances (60 x image is missing" in error
    assert not out.exists() and len(read_rows(tmp_path / "rows.jsonl.skipped.jsonl")) == 60
    himtok(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_given_annotations_and_images_are_used(root, prepare, tmp_path):
    moved = tmp_path / "elsewhere.json"
    moved.write_bytes((root / "annotations" / "instances_train2017.json").read_bytes())
    rows, _, _ = prepare("coco", tmp_path, "--annotations", moved, "--images", root / "train2017", "--task", "masks")
    assert len(rows) == 120


@pytest.mark.parametrize("name", [*FORMATS, "mix", "check", "tasks"])
def test_every_command_has_help(himtok, name):
    status, out, _ = himtok("prepare", name, "--help")
    assert status == 0 and "Usage: " in out


@pytest.mark.parametrize("name", FORMATS)
def test_every_reader_of_the_catalog_exists_and_names_missing_files(name, prepare, tmp_path):
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


def test_conversion_imports_neither_torch_nor_swift(root, tmp_path):
    code = (
        "import sys; from himtok_plugin import cli\n"
        f"arguments = ['--root', {str(root)!r}, {str(tmp_path / 'o.jsonl')!r}, '--num_workers', '0']\n"
        "try: cli.main(['prepare', 'coco', *arguments])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'swift', 'transformers', 'datasets'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
