"""`--dataset refcoco:train --data_root DIR`: prepared once, then read like any other dataset."""

import errno
import json
import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from runs import logged
from tiny_datasets import SIZE as TINY_SIZE
from tiny_datasets import write

from himtok_plugin.data.catalog import FORMATS
from himtok_plugin.mask_text import count_placeholders
from himtok_plugin.masks import load_mask

POLYGON = [10.0, 10.0, 40.0, 12.0, 30.0, 40.0]
SIZE = (48, 64)


def refer(root, splits=("train", "train", "val")):
    """RefCOCO's files, with one image and one reference per split."""
    folder = root / "refcoco"
    folder.mkdir(parents=True)
    (root / "train2014").mkdir()
    images, annotations, refs = [], [], []
    for i, split in enumerate(splits):
        name = f"COCO_train2014_{i:012}.jpg"
        Image.fromarray(np.full((*SIZE, 3), 40 * i, np.uint8)).save(root / "train2014" / name)
        images.append({"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        annotations.append(
            {"id": i, "image_id": i, "category_id": 1, "segmentation": [POLYGON], "bbox": [10, 10, 30, 30]}
        )
        sentences = [{"sent": f"thing {i}", "raw": f"Thing {i}", "sent_id": i, "tokens": ["thing", str(i)]}]
        refs.append({"ref_id": i, "ann_id": i, "image_id": i, "split": split, "sentences": sentences, "category_id": 1})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "instances.json").write_text(json.dumps(content))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs))
    return root


@pytest.fixture
def load(tmp_path, monkeypatch):
    """ms-swift's own `load_dataset`, with the plugin's options, and a cache of its own."""
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    from swift.dataset import load_dataset

    from himtok_plugin.swift_integration import register
    from himtok_plugin.swift_integration.samples import prepared_datasets

    register.register()
    monkeypatch.setattr(prepared_datasets, "get_cache_dir", lambda: str(tmp_path / "cache"))

    def run(*names, data_root=(), data_tasks=(), **options):
        settings = SimpleNamespace(data_root=[str(r) for r in data_root], data_tasks=list(data_tasks))
        monkeypatch.setattr(prepared_datasets, "get_current_arguments", lambda: settings)
        return load_dataset(list(names), **options)

    return run


def packed(row):
    return json.loads(row["masks"])["himtok_masks"]


def test_every_dataset_of_the_catalog_is_registered_with_ms_swift(load):
    from swift.dataset.dataset_meta import DATASET_MAPPING

    assert set(FORMATS) <= set(DATASET_MAPPING)
    assert {subset.name for subset in DATASET_MAPPING["refcoco"].subsets} == set(FORMATS["refcoco"].splits)


@pytest.mark.parametrize("name", FORMATS)
def test_a_dataset_is_read_by_its_name(load, tmp_path, name):
    """`--dataset NAME:SPLIT --data_root DIR`; every dataset has the same mask column."""
    root = write(name, tmp_path / "data").root
    split = FORMATS[name].splits[0]
    dataset, _ = load(f"{name}:{split}", data_root=[f"{name}={root}"])
    assert len(dataset)
    for row in dataset:
        masks = [load_mask(mask) for mask in packed(row)]
        assert all(mask.shape == TINY_SIZE and mask.any() for mask in masks)
        if name == "sa1b":
            assert len(masks) == 1  # for stage 1
            continue
        assert Path(row["images"][0]["path"]).is_file()
        assert sum(count_placeholders(message["content"]) for message in row["messages"]) == len(masks)
        assert row["messages"][-1]["role"] == "assistant"


def test_datasets_of_different_columns_mix(load, tmp_path):
    names = ["refcoco", "coco", "reasonseg", "rec", "pope", "grandf"]
    roots = [f"{name}={write(name, tmp_path / name).root}" for name in names]
    alone = sum(len(load(name, data_root=roots)[0]) for name in names)
    rows = list(load(*names, data_root=roots)[0])
    assert len(rows) == alone
    for row in rows:
        boxes = (row["objects"] or {}).get("bbox") or []
        text = "".join(message["content"] for message in row["messages"])
        assert text.count("<bbox>") == len(boxes) and count_placeholders(text) == len(packed(row))


def test_split_is_prepared_and_read(load, tmp_path):
    root = refer(tmp_path / "data")
    train, held_out = load("refcoco:train", data_root=[root])
    assert held_out is None and len(train) == 2
    row = train[0]
    assert "thing 0" in row["messages"][0]["content"] and count_placeholders(row["messages"][1]["content"]) == 1
    assert load_mask(packed(row)[0]).shape == SIZE
    assert len(load("refcoco:train/val", data_root=[root])[0]) == 3
    assert len(load("refcoco:train#1", data_root=[root])[0]) == 1
    assert len(load("refcoco", data_root=[f"refcoco={root}"])[0]) == 2


def test_streaming_returns_the_same_rows(load, tmp_path):
    root = refer(tmp_path / "data")
    rows = list(load("refcoco:train", data_root=[root], streaming=True)[0])
    assert [packed(row) for row in rows] == [packed(row) for row in load("refcoco:train", data_root=[root])[0]]


def test_dataset_is_prepared_once_and_again_if_annotations_or_tasks_change(load, tmp_path, monkeypatch):
    from himtok_plugin.data import prepare as module

    runs = []
    original = module.prepare_samples
    monkeypatch.setattr(module, "prepare_samples", lambda job, out: runs.append(out) or original(job, out))
    root = refer(tmp_path / "data")
    load("refcoco:train", data_root=[root])
    load("refcoco:train", data_root=[root])
    assert len(runs) == 1
    boxed, _ = load("refcoco:train", data_root=[root], data_tasks=["mask_then_box"])
    assert len(runs) == 2 and "<bbox>" in boxed[0]["messages"][1]["content"] and boxed[0]["objects"]["bbox"]
    refs = root / "refcoco" / "refs(unc).p"
    refs.write_bytes(pickle.dumps(pickle.loads(refs.read_bytes())[:1]))
    assert len(load("refcoco:train", data_root=[root])[0]) == 1 and len(runs) == 3


def run_in_processes(function, count=4):
    """Run a function in processes that begin at the same moment; return what each of them returned or raised."""
    fork = multiprocessing.get_context("fork")
    results, together = fork.Queue(), fork.Barrier(count)

    def run():
        together.wait()
        try:
            results.put(function())
        except Exception as error:
            results.put(error)

    processes = [fork.Process(target=run) for _ in range(count)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(timeout=120)
    return found


def test_one_of_several_processes_prepares_and_the_others_wait_for_it(load, tmp_path, monkeypatch):
    from himtok_plugin.data import prepare as module
    from himtok_plugin.swift_integration.samples import prepared_datasets

    original, log = module.prepare_samples, tmp_path / "log"

    def prepare_slowly(job, out):
        with log.open("a") as file:
            file.write("prepares\n")
        time.sleep(1)
        return original(job, out)

    def tell(text):
        with log.open("a") as file:
            file.write(text.replace("\n", " ") + "\n")

    monkeypatch.setattr(module, "prepare_samples", prepare_slowly)
    monkeypatch.setattr(prepared_datasets.logger, "info", tell)
    root = refer(tmp_path / "data")
    texts = run_in_processes(
        lambda: [m["content"] for row in load("refcoco:train", data_root=[root])[0] for m in row["messages"]]
    )
    assert len(texts) == 4 and all(text == texts[0] and len(text) == 4 for text in texts)
    lines = log.read_text().splitlines()
    assert lines.count("prepares") == 1
    assert sum("refcoco:train: waiting for another process that prepares" in line for line in lines) == 3


def test_several_processes_without_locks_prepare_the_same_file(load, tmp_path, monkeypatch):
    """As on a network file system without locks."""
    from himtok_plugin.jobs import file_lock

    class MissingLock(file_lock.FileLock):
        def acquire(self, *args, **kwargs):
            raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(file_lock, "FileLock", MissingLock)
    root = refer(tmp_path / "data")
    assert run_in_processes(lambda: len(load("refcoco:train", data_root=[root])[0])) == [2] * 4


def test_work_of_a_killed_process_is_taken_over(load, tmp_path, monkeypatch):
    from himtok_plugin.data import prepare as module
    from himtok_plugin.files.atomic_file import atomic_write

    def die(job, out):
        with atomic_write(out) as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    root = refer(tmp_path / "data")
    with monkeypatch.context() as patched:
        patched.setattr(module, "prepare_samples", die)
        killed = multiprocessing.get_context("fork").Process(
            target=load, args=("refcoco:train",), kwargs={"data_root": [root]}
        )
        killed.start()
        killed.join(timeout=120)
    assert killed.exitcode == -signal.SIGKILL and list((tmp_path / "cache").rglob("*.unfinished"))
    assert len(load("refcoco:train", data_root=[root])[0]) == 2
    assert not list((tmp_path / "cache").rglob("*.unfinished"))


def test_missing_parts_are_named(load, tmp_path):
    root = refer(tmp_path / "data")
    with pytest.raises(ValueError, match="expected the folder of 'refcoco'"):
        load("refcoco:train")
    with pytest.raises(ValueError, match="--split: got 'dev'"):
        load("refcoco:dev", data_root=[root])
    with pytest.raises(ValueError, match="task: got 'segmnt'"):
        load("refcoco:train", data_root=[root], data_tasks=["segmnt"])
    with pytest.raises(ValueError, match="got no rows"):
        for picture in (root / "train2014").iterdir():
            picture.unlink()
        load("refcoco:train", data_root=[root])


def test_swift_sft_trains_on_a_named_dataset(train, tmp_path, monkeypatch):
    from himtok_plugin.swift_integration.samples import prepared_datasets

    monkeypatch.setattr(prepared_datasets, "get_cache_dir", lambda: str(tmp_path / "cache"))
    root = refer(tmp_path / "data", ("train",) * 4)
    result = train(dataset="refcoco:train", data_root=[str(root)])
    assert logged(result, "loss") or logged(result, "train_loss")
