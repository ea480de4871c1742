"""`swift eval --plugin himtok` scores masks, boxes, choices, POPE and VQAv2 of one checkpoint in one command.

evalscope is an optional dependency (`pip install himtok_plugin[eval]`).
"""

import json
from types import SimpleNamespace

import pytest
from runs import flags, infer, read_rows, run_swift, write_rows

pytest.importorskip("evalscope")

import numpy as np

from himtok_plugin.evaluation.evaluate import evaluate_results
from himtok_plugin.evaluation.protocols import find_protocol
from himtok_plugin.evaluation.scoring import ResultScores
from himtok_plugin.mask_text import codes_to_text, text_to_codes
from himtok_plugin.masks import mask_bbox, to_rle
from himtok_plugin.swift_integration.evaluation import benchmark_masks
from himtok_plugin.swift_integration.evaluation import evalscope_benchmarks as benchmarks
from himtok_plugin.swift_integration.options import current_arguments

CACHED = (
    benchmark_masks.find_evaluated_mask_tokenizer,
    benchmark_masks.load_evaluated_mask_tokenizer,
    benchmark_masks.make_mask_predictor,
)
BENCHMARKS = ["refcoco_seg", "grefcoco_seg", "reasonseg", "rec", "mask_perception"]


def vqa_tables(root, image):
    """Write a few rows of POPE and VQAv2 with the columns, splits and folders that they have on the hub."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    picture = {"bytes": image.read_bytes(), "path": None}
    asked = [("Is there a dog in the image?", "no"), ("Is there a shape in the image?", "yes")]
    (root / "pope").mkdir()
    for split in ("random", "popular"):
        rows = [
            {
                "id": str(i),
                "question_id": str(i),
                "question": q,
                "answer": a,
                "image_source": "x",
                "image": picture,
                "category": split,
            }
            for i, (q, a) in enumerate(asked)
        ]
        features = Features({name: Value("string") for name in rows[0] if name != "image"} | {"image": ImageFeature()})
        Dataset.from_list(rows, features=features).to_parquet(root / "pope" / f"{split}-00000-of-00001.parquet")
    card = {
        "config_name": "Full",
        "data_files": [{"split": n, "path": f"{n}-*.parquet"} for n in ("random", "popular")],
    }
    (root / "pope" / "README.md").write_text(f"---\n{json.dumps({'configs': [card]})}\n---\n")  # JSON is YAML
    (root / "vqav2").mkdir()
    answers = [{"answer": "red", "answer_confidence": "yes", "answer_id": n} for n in range(10)]
    rows = [
        {
            "question": "What colour is it?",
            "multiple_choice_answer": "red",
            "answers": answers,
            "image": picture,
            "question_id": 1,
        }
    ]
    table = Dataset.from_list(rows).cast_column("image", ImageFeature())
    table.to_parquet(root / "vqav2" / "validation-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def rows(world, tmp_path_factory):
    """Make a folder with rows of every benchmark."""
    root = tmp_path_factory.mktemp("rows")
    scenes = read_rows(world.scenes)
    (root / "refcoco").mkdir()
    write_rows(root / "refcoco" / "testA.jsonl", scenes[:6])
    write_rows(root / "refcoco" / "testB.jsonl", scenes[6:9])
    write_rows(root / "grefcoco.jsonl", scenes[:5])
    ignore = np.zeros((48, 64), bool)
    ignore[:, :30] = True
    reason = [world.segment(world.left, ignore=to_rle(ignore)), world.segment(world.right, ignore=to_rle(ignore))]
    write_rows(root / "reasonseg.jsonl", reason)
    boxes = [list(mask_bbox(mask)) for mask in (world.left, world.right)]
    write_rows(
        root / "rec.jsonl",
        [world.row("<image>Where?", "It is at <bbox>.", objects={"ref": [], "bbox": [box]}) for box in boxes],
    )
    question = "<image>What is <mask>?\nA. a dog\nB. a shape"
    write_rows(root / "perception.jsonl", [world.row(question, "B. a shape", masks=[world.left])] * 2)
    vqa_tables(root, world.image)
    return root


def evaluate(rows, out, benchmarks, **options):
    places = {
        "refcoco_seg": {"local_path": str(rows / "refcoco")},
        "grefcoco_seg": {"local_path": str(rows / "grefcoco.jsonl")},
        "reasonseg": {"local_path": str(rows / "reasonseg.jsonl"), "extra_params": {"protocol": "himtok"}},
        "rec": {"local_path": str(rows / "rec.jsonl"), "extra_params": {"box_from": "mask"}},
        "mask_perception": {"local_path": str(rows / "perception.jsonl")},
        "pope": {"local_path": str(rows / "pope"), "subset_list": ["random", "popular"]},
        "vqav2": {"local_path": str(rows / "vqav2")},
    }
    defaults = {
        "plugin": "himtok",
        "eval_dataset": benchmarks,
        "eval_dataset_args": json.dumps({name: places[name] for name in benchmarks}),
        "eval_output_dir": out,
        "eval_num_proc": 4,
        "max_new_tokens": 24,
        "eval_generation_config": json.dumps({"max_tokens": 24, "temperature": 0}),
        "extra_eval_args": json.dumps({"no_timestamp": True}),
        "max_batch_size": 4,
        "torch_dtype": "float32",
    }
    return run_swift("eval", *flags(**{**defaults, **options}), cwd=out, timeout=900)


@pytest.fixture(scope="module")
def evaluated(stage_two, rows, tmp_path_factory):
    """Run all benchmarks: (the run's folder, its output)."""
    out = tmp_path_factory.mktemp("evaluated")
    done = evaluate(rows, out, [*BENCHMARKS, "pope", "vqav2"], model=stage_two[1])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return out, done.stdout


def own_reports(folder):
    return {path.stem: json.loads(path.read_text()) for path in folder.rglob("himtok/*.json") if "run" not in path.stem}


def test_one_command_reports_masks_boxes_choices_and_vqa(evaluated):
    out, printed = evaluated
    own = own_reports(out)
    names = {"refcoco_seg_testA", "refcoco_seg_testB", "grefcoco_seg_grefcoco", "reasonseg_reasonseg", "rec_rec"}
    assert set(own) == names | {"mask_perception_perception"}
    assert own["refcoco_seg_testA"]["scores"]["samples"] == 6
    assert {path.stem for path in out.rglob("reports/*/*.json")} >= {*BENCHMARKS, "pope", "vqav2"}
    assert "| cIoU |" in printed and "| accuracy |" in printed and "| box_acc@0.5 |" in printed


def test_every_score_has_its_protocol_and_run_card(evaluated, stage_two):
    out, _ = evaluated
    own = own_reports(out)
    protocols = {name: report["protocol"]["name"] for name, report in own.items()}
    assert protocols["refcoco_seg_testA"] == "per-sentence" and protocols["grefcoco_seg_grefcoco"] == "grefcoco-50px"
    assert protocols["reasonseg_reasonseg"] == "himtok"  # from extra_params
    run = own["refcoco_seg_testA"]["run"]
    assert run["checkpoint"] == [str(stage_two[1])] and len(run["checkpoint_hash"]) == 32
    assert (run["num_mask_tokens"], run["mask_decoding"], run["refiner"]) == (4, "hard", "none")
    assert {"himtok_plugin", "evalscope", "ms_swift", "torch"} <= set(run["versions"])


def test_masks_equal_those_of_swift_infer(evaluated, stage_two, rows, tmp_path):
    """The benchmark decodes the server's answers; `swift infer` decodes its own."""
    (result,) = evaluated[0].rglob("himtok/refcoco_seg_testA.jsonl")
    file = tmp_path / "out.jsonl"
    infer(rows / "refcoco" / "testA.jsonl", file, model=stage_two[1], max_new_tokens=24, mask_decoding="hard")
    for answered, expected in zip(read_rows(result), read_rows(file), strict=True):
        assert answered["response"] == expected["response"]
        assert [m["counts"] for m in answered["masks"]] == [m["counts"] for m in expected["masks"]]
        assert answered["row"] == expected["row"]
    assert json.loads(file.with_name("out.jsonl.run.json").read_text())["mask_decoding"] == "hard"


def test_himtok_eval_computes_the_same_scores_from_the_result_file(evaluated):
    out, _ = evaluated
    for name, protocol in (("refcoco_seg_testA", "per-sentence"), ("reasonseg_reasonseg", "himtok")):
        (result,) = out.rglob(f"himtok/{name}.jsonl")
        scored = evaluate_results(result, find_protocol(protocol), boundary=False)
        assert scored.scores == pytest.approx(own_reports(out)[name]["scores"])
        assert scored.run is not None and scored.run.num_mask_tokens == 4


# ----- without a server


@pytest.fixture
def settings(world):
    """Make the arguments of a run."""
    return SimpleNamespace(
        mask_tokenizer=str(world.mask_tokenizer),
        model=str(world.lmm),
        adapters=[],
        adapter_folders=[],
        mask_decoding="soft",
        mask_threshold=0.5,
        mask_resize="bilinear",
        min_score=0.0,
        num_mask_tokens=None,
        refiner="none",
        template="internvl_hf",
    )


@pytest.fixture
def adapter(settings, rows, monkeypatch):
    """Return a function that makes a benchmark as evalscope does, with the world's mask tokenizer."""
    from evalscope.api.registry import get_benchmark
    from evalscope.config import TaskConfig

    benchmarks.register_benchmarks()
    monkeypatch.setattr(current_arguments, "_current", [settings])
    for cached in CACHED:
        cached.cache_clear()

    def make(name, path, limit=None, **extra):
        task = TaskConfig(
            model="m",
            datasets=[name],
            limit=limit,
            dataset_args={name: {"local_path": str(path), **({"extra_params": extra} if extra else {})}},
            work_dir=str(rows / "work"),
        )
        return get_benchmark(name, task)

    yield make
    for cached in CACHED:
        cached.cache_clear()


def scored(adapter, dataset, answers):
    """Score answers; None is a missing answer."""
    from evalscope.api.metric import SampleScore

    scores = []
    for sample, answer in zip(dataset, answers, strict=True):
        if answer is not None:
            state = SimpleNamespace(metadata=sample.metadata, output=None)
            score = adapter.match_score(answer, answer, sample.target, state)
            scores.append(SampleScore(score=score, sample_metadata=sample.metadata, sample_id=sample.id))
    return scores


def test_missing_answers_count_as_failures(adapter, rows):
    made = adapter("refcoco_seg", rows / "refcoco" / "testB.jsonl")
    dataset = made.load_dataset()["testB"]
    scores = made.aggregate_subset("testB", scored(made, dataset, ["There is none.", None, None]))
    report = made._reports["testB"]
    assert report.failures == ["testB: row 2: no prediction", "testB: row 3: no prediction"]
    assert report.scores["samples"] == 3 and report.scores["failures"] == 2
    assert {score.num for score in scores} == {3}
    assert [row.get("failed", False) for row in made._results["testB"]] == [False, True, True]


def test_limit_selects_the_first_rows_and_files_are_subsets(adapter, rows):
    made = adapter("refcoco_seg", rows / "refcoco", limit=2)
    assert {name: len(part) for name, part in made.load_dataset().items()} == {"testA": 2, "testB": 2}


def test_masks_in_questions_are_written_as_codes(adapter, rows, world):
    made = adapter("mask_perception", rows / "perception.jsonl")
    (sample, _) = made.load_dataset()["perception"]
    text = sample.input[0].content[1].text
    (span,) = text_to_codes(text)
    assert span.complete and text.startswith("What is <|mt_start|>") and "<mask>" not in text
    assert sample.input[0].content[0].image == str(world.image)


def test_choices_and_boxes_are_scored(adapter, rows):
    choices = adapter("mask_perception", rows / "perception.jsonl")
    dataset = choices.load_dataset()["perception"]
    choices.aggregate_subset("perception", scored(choices, dataset, ["The answer is B", "no idea"]))
    assert choices._reports["perception"].scores == {"accuracy": 0.5, "samples": 2, "unreadable": 1, "failures": 0}
    boxes = adapter("rec", rows / "rec.jsonl", box_scale="pixel")
    dataset = boxes.load_dataset()["rec"]
    ((x1, y1, x2, y2),) = dataset[0].metadata["target_boxes"]
    boxes.aggregate_subset("rec", scored(boxes, dataset, [f"[{x1}, {y1}, {x2}, {y2 - 1}]", None]))
    assert boxes._reports["rec"].scores["box_acc@0.9"] == 0.5
    assert boxes._reports["rec"].scores["missing"] == 1
    card = boxes._reports["rec"].run
    assert (card.mask_decoding, card.refiner, card.min_score) == (None, "none", None)  # no mask was decoded
    kept = ResultScores(boundary=False)
    for row in boxes._results["rec"]:
        kept.add(row)
    assert kept.compute()["box_acc@0.9"] == 0.5 and kept.compute()["box_missing"] == 1


def test_boxes_are_read_in_the_unit_of_the_template(adapter, rows, settings, monkeypatch):
    boxes = adapter("rec", rows / "rec.jsonl")
    dataset = boxes.load_dataset()["rec"]
    ((x1, y1, x2, y2),) = dataset[0].metadata["target_boxes"]
    thousandths = [round(1000 * value / side) for value, side in zip((x1, y1, x2, y2), (64, 48, 64, 48), strict=True)]
    assert boxes.judge(str(thousandths), dataset[0].metadata, None)[1]["iou"] > 0.95
    settings.template = "qwen2_5_vl"  # boxes in pixels of the resized image, here twice as large
    monkeypatch.setattr(benchmarks, "_load_template", lambda: "a template")
    monkeypatch.setattr(benchmarks, "parse_answer_boxes", lambda text, image, template: [[x1, y1, x2, y2]])
    assert boxes.judge("[0, 0, 1, 1]", dataset[0].metadata, None)[1]["iou"] == 1.0
    settings.eval_url = "http://elsewhere/v1"
    with pytest.raises(ValueError, match="box_scale: got a template .qwen2_5_vl. that writes pixels of the image as"):
        adapter("rec", rows / "rec.jsonl").load_dataset()
    settings.template = None
    with pytest.raises(
        ValueError, match="box_scale: got the model .* template is unknown, expected box_scale in extra_params, one of"
    ):
        adapter("rec", rows / "rec.jsonl").load_dataset()
    adapter("rec", rows / "rec.jsonl", box_from="mask").load_dataset()


@pytest.mark.parametrize(("option", "value"), [("refiner", "sam2"), ("min_score", 0.3)])
def test_options_that_would_have_no_effect_are_refused(adapter, rows, settings, option, value):
    setattr(settings, option, value)
    with pytest.raises(ValueError, match=f"{option}: got {value!r}, expected"):
        adapter("refcoco_seg", rows / "refcoco").load_dataset()
    adapter("mask_perception", rows / "perception.jsonl").load_dataset()  # no masks there


def test_run_card_names_options_only_if_they_had_an_effect(adapter, rows, settings):
    made = adapter("refcoco_seg", rows / "refcoco" / "testB.jsonl")
    made._task_config.generation_config.logprobs = True
    settings.min_score = 0.3
    dataset = made.load_dataset()["testB"]
    made.aggregate_subset("testB", scored(made, dataset, ["There is none."] * 3))  # without log-probabilities
    card = made._reports["testB"].run
    assert (card.mask_decoding, card.min_score, card.refiner) == ("hard", 0.0, "none")
    text = codes_to_text([1, 2])
    listed = [{"token": token, "logprob": -0.1, "top_logprobs": []} for token in ("<|mt_1|>", "<|mt_2|>")]
    made.judge(text, dataset[0].metadata, listed)
    made.aggregate_subset("testB", scored(made, dataset, ["There is none."] * 3))
    card = made._reports["testB"].run
    assert card.mask_decoding.startswith("soft, of the log-prob") and card.min_score == 0.3


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("refcoco_seg", {"messages": [{"role": "user", "content": "Segment."}]}, "got no answer at the end"),
        (
            "refcoco_seg",
            {"question": "<image>What is <mask>?", "answer": "A dog."},
            "masks: got a question that asks for none",
        ),
        ("refcoco_seg", {"images": ["nowhere.png"]}, "images: got .*nowhere.png.* expected an image file"),
        ("refcoco_seg", {"question": "<image>Segment <bbox>."}, "got <bbox> in a question, expected its text"),
        ("refcoco_seg", {"question": "<image>Meet all the descriptions: 1. a."}, "under the protocol 'per-sentence'"),
        ("rec", {}, "objects: got .*expected one box"),
        ("mask_perception", {"answer": "The dog."}, "expected one with a letter"),
    ],
)
def test_error_names_the_unusable_row(adapter, world, tmp_path, name, row, message):
    made = world.row(row.pop("question", "<image>Segment."), row.pop("answer", "It is <mask>."), masks=[world.left])
    path = write_rows(tmp_path / "rows.jsonl", [{**made, **row}])
    with pytest.raises(ValueError, match=f"rows.jsonl: row 1: .*{message}"):
        adapter(name, path).load_dataset()


def test_error_of_missing_data_names_the_flag(adapter, tmp_path):
    for path in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(ValueError, match="--eval_dataset_args: local_path of reasonseg: got"):
            adapter("reasonseg", path).load()
