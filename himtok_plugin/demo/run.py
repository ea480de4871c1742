"""`himtok demo`: held-out scenes segmented and drawn, by the checkpoint that ships or by one trained from nothing.

Contract: `Demo(...).run()` has `swift infer` segment generated scenes with a checkpoint, scores, and draws image,
truth, prediction and the growing mask. `TrainingDemo` trains that checkpoint first, all three stages, with the shipped
`stage*_tiny_full` configs. Both return the scores and leave everything in their folder. How training and inference work
is not known here: what a user would type is what runs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from himtok_plugin.data.generated.scenes import (
    generate_masks,
    generate_scenes,
    write_mask_rows,
    write_rows,
)
from himtok_plugin.mask_text import IMAGE_PLACEHOLDER
from himtok_plugin.mask_tokenizer.released_weights import SIDECAR_FOLDER
from himtok_plugin.masks.sources import load_mask
from himtok_plugin.resources import config_path

from .figure import DemoRow, demo_figure

TRAIN_SEED, HELD_OUT_SEED, TEXT_SEED = 1, 2, 3
TRAIN_TURNS = 3  # questions about one image: the image, most of the work, is read once for all of them
PICTURE_ROWS = 6
POLL_SECONDS = 0.5
LAST_CHECKPOINT = "last-checkpoint"  # ms-swift's link
BFLOAT16_GAIN = 1.5  # that its products must have for a training step to have any: casting costs time as well
OnStep = Callable[[str, int, int], None]  # (what is going on, done, total)


@dataclass(frozen=True)
class DemoPlan:
    """How much of everything; steps of None are those of the configs."""

    train_scenes: int
    held_out_scenes: int
    train_masks: int
    held_out_masks: int
    steps: tuple[int | None, int | None, int | None] = (None, None, None)
    stage_one: tuple[str, ...] = ()  # further options of stage 1
    measured: tuple[int, ...] = (2, 3)  # stages whose checkpoint is asked about the held-out scenes


SCENES = 100  # of the demo without training
FULL = DemoPlan(train_scenes=18000, held_out_scenes=300, train_masks=40000, held_out_masks=500)
# Of a look, most of the time goes into starting `swift`: as few commands as there can be.
QUICK = DemoPlan(
    train_scenes=400,
    held_out_scenes=24,
    train_masks=2000,
    held_out_masks=100,
    steps=(80, 20, 20),
    stage_one=("--continuous_warmup_steps", "30"),
    measured=(3,),
)


def bfloat16_is_faster() -> bool:
    """Whether this machine's processor gains by bfloat16, left off in the configs: those with AMX do, most others lose.

    Measured on a product of the size that the demo's LMM is made of, in a few milliseconds.
    """
    import torch

    def seconds(dtype: torch.dtype) -> float:
        rows, matrix = torch.ones(2048, 192, dtype=dtype), torch.ones(192, 768, dtype=dtype)
        times = []
        for _ in range(10):
            started = time.perf_counter()
            rows @ matrix
            times.append(time.perf_counter() - started)
        return min(times)

    return seconds(torch.float32) > BFLOAT16_GAIN * seconds(torch.bfloat16)


class CommandFailed(RuntimeError):
    """A `swift` command ended with an error."""


class Demo:
    """Segments held-out scenes in one folder.

    Args:
        folder: everything is written here.
        report: called with what is going on and how far it is.
    """

    def __init__(self, folder: Path, report: OnStep):
        self.folder = folder.resolve()
        self.report = report
        self.minutes: dict[str, float] = {}

    def run(self, checkpoint: str | os.PathLike | None = None, count: int = SCENES) -> dict[str, Any]:
        """Scenes, inference, scores, picture.

        Args:
            checkpoint: of a segmenting LMM; by default the one that ships with the package.
            count: scenes to segment.

        Returns:
            Scores of the LMM, minutes per part.

        Raises:
            CommandFailed: a `swift` command failed; the message names its log.
        """
        from himtok_plugin.resources import default_checkpoint

        checkpoint = default_checkpoint() if checkpoint is None else Path(checkpoint)
        self.folder.mkdir(parents=True, exist_ok=True)
        held_out = write_rows(self.folder / "held_out", count, HELD_OUT_SEED)
        scores = {f"{count} held-out scenes": self._infer(os.fspath(checkpoint), held_out, "results")}
        return self._finish(scores, "results", checkpoint / SIDECAR_FOLDER)

    def _finish(self, scores: dict[str, Any], result: str, mask_tokenizer: Path) -> dict[str, Any]:
        scores["minutes"] = {name: round(value, 1) for name, value in self.minutes.items()}
        self._draw(result, mask_tokenizer)
        (self.folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
        return scores

    def _infer(self, model: str, held_out: Path, name: str) -> dict[str, Any]:
        from himtok_plugin.evaluation.scoring import score_results

        result = self.folder / f"{name}.jsonl"
        result.unlink(missing_ok=True)  # ms-swift appends
        self._swift(
            f"inference, {name}",
            None,
            "infer",
            *("--plugin", "himtok", "--model", model, "--val_dataset", os.fspath(held_out)),
            *("--result_path", os.fspath(result), "--max_batch_size", "64", "--max_new_tokens", "96"),
            *("--temperature", "0", "--stream", "false"),
        )
        return score_results(result)

    def _swift(self, name: str, progress_file: Path | None, *arguments: str) -> None:
        """Run a `swift` command, its output in a log file, its progress in the report."""
        log = self.folder / (name.replace(", ", "_").replace(" ", "") + ".log")
        started = time.monotonic()
        if progress_file is not None:
            progress_file.unlink(missing_ok=True)
        self.report(name, 0, 1)
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "swift.cli.main", *arguments], stdout=file, stderr=subprocess.STDOUT
            )
            try:
                while process.poll() is None:
                    time.sleep(POLL_SECONDS)
                    if progress_file is not None and progress_file.is_file():
                        self._report_progress(name, progress_file)
            finally:
                if process.poll() is None:  # interrupted: no training goes on behind the user's back
                    process.terminate()
                    process.wait()
        self.minutes[name] = (time.monotonic() - started) / 60
        if process.returncode:
            raise CommandFailed(f"swift {arguments[0]} failed with status {process.returncode}, see {log}")
        self.report(name, 1, 1)

    def _report_progress(self, name: str, progress_file: Path) -> None:
        lines = progress_file.read_text(encoding="utf-8").splitlines()
        for line in reversed(lines):
            try:
                done, total = json.loads(line)["global_step/max_steps"].split("/")
            except (ValueError, KeyError):
                continue  # half-written, or no training step
            self.report(name, int(done), int(total))
            return

    def _draw(self, name: str, tokenizer: Path) -> None:
        """demo.png: the first held-out scenes with one target, and one of each other kind."""
        import torch

        from himtok_plugin.mask_tokenizer import MaskTokenizer
        from himtok_plugin.masks.sources import Masks
        from himtok_plugin.metrics.reconstruction import token_counts
        from himtok_plugin.metrics.segmentation import mask_iou

        model = MaskTokenizer.from_pretrained(tokenizer)
        k = model.config.num_mask_tokens
        rows = []
        with (self.folder / f"{name}.jsonl").open(encoding="utf-8") as file:
            results = [json.loads(line) for line in file]
        for result in _varied(results, PICTURE_ROWS):
            image = Image.open(_path(result["images"][0])).convert("RGB")
            size = (image.height, image.width)
            truth = Masks.load(result["target_masks"], size).union() if result["target_masks"] else np.zeros(size, bool)
            growth, prediction = {}, None
            if result["masks"]:
                prediction = np.logical_or.reduce([load_mask(_rle(mask), size) for mask in result["masks"]])
                codes = torch.tensor([mask["codes"] for mask in result["masks"] if len(mask["codes"]) == k])
                for n in token_counts(k):
                    if len(codes):
                        with torch.inference_mode():
                            growth[n] = model.decode(codes[:, :n]).amax(0).numpy()
            iou = mask_iou(np.zeros(size, bool) if prediction is None else prediction, truth)
            title = result["messages"][0]["content"].replace(IMAGE_PLACEHOLDER, "").strip()
            rows.append(DemoRow(title, image, truth, prediction, growth, f"IoU {iou:.2f}"))
        demo_figure(rows).save(self.folder / "demo.png")


class TrainingDemo(Demo):
    """One run of the demo from nothing.

    Args:
        plan: how much of everything.
        folder, report: see `Demo`.
    """

    def __init__(self, folder: Path, plan: DemoPlan, report: OnStep):
        super().__init__(folder, report)
        self.plan = plan
        self.in_bfloat16 = bfloat16_is_faster()

    def run(self) -> dict[str, Any]:
        """Data, stages 1 to 3, inference, scores, picture.

        Returns:
            Reconstruction IoU per token count, scores of the LMM per stage, minutes per part.

        Raises:
            CommandFailed: a `swift` command failed; the message names its log.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        train, held_out = self._write_data()
        tokenizer = self._stage_one()
        lmm = self._build_lmm()
        checkpoints = {2: self._stage(2, lmm, train, held_out, "--mask_tokenizer", tokenizer)}
        checkpoints[3] = self._stage(3, checkpoints[2], train, held_out)
        scores: dict[str, Any] = {"tokenizer": self._score_tokenizer(tokenizer)}
        for stage in self.plan.measured:
            scores[f"stage {stage}"] = self._infer(checkpoints[stage], held_out, f"stage{stage}_results")
        return self._finish(scores, "stage3_results", Path(checkpoints[3]) / SIDECAR_FOLDER)

    # ----- data and models

    def _write_data(self) -> tuple[Path, Path]:
        plan = self.plan

        def counted(name: str, count: int):
            def progress(items):
                for i, item in enumerate(items, start=1):
                    if i % 100 == 0 or i == count:
                        self.report(name, i, count)
                    yield item

            return progress

        write_mask_rows(
            self.folder / "masks.jsonl", plan.train_masks, TRAIN_SEED, progress=counted("masks", plan.train_masks)
        )
        write_mask_rows(self.folder / "held_out_masks.jsonl", plan.held_out_masks, HELD_OUT_SEED)
        train = write_rows(
            self.folder / "train",
            plan.train_scenes,
            TRAIN_SEED,
            turns=TRAIN_TURNS,
            progress=counted("scenes", plan.train_scenes),
        )
        return train, write_rows(self.folder / "held_out", plan.held_out_scenes, HELD_OUT_SEED)

    def _build_lmm(self) -> str:
        from himtok_plugin.lmm.tiny_internvl import build_tiny_internvl

        texts = [turn["content"] for scene in generate_scenes(500, TEXT_SEED) for turn in scene.messages]
        return os.fspath(build_tiny_internvl(self.folder / "lmm", texts, "demo"))

    # ----- stages

    def _stage_one(self) -> str:
        import torch

        from himtok_plugin.mask_tokenizer import build_mask_tokenizer

        torch.manual_seed(TRAIN_SEED)
        fresh = self.folder / "mask_tokenizer_untrained"
        build_mask_tokenizer("tiny").save_pretrained(fresh)
        rows = self.folder / "masks.jsonl", self.folder / "held_out_masks.jsonl"
        return self._stage(1, os.fspath(fresh), *rows, *self.plan.stage_one)

    def _stage(self, number: int, model: str, train: Path, held_out: Path, *extra: str) -> str:
        """`swift sft` with the stage's config; returns the last checkpoint."""
        output = self.folder / f"stage{number}"
        shutil.rmtree(output, ignore_errors=True)  # an older run's checkpoint could be taken for this one's
        steps = self.plan.steps[number - 1]
        self._swift(
            f"stage {number}",
            output / "logging.jsonl",
            "sft",
            os.fspath(config_path(f"stage{number}_tiny_full")),
            *("--model", model, "--dataset", os.fspath(train), "--val_dataset", os.fspath(held_out)),
            *("--output_dir", os.fspath(output)),
            *([] if steps is None else ["--max_steps", str(steps), "--eval_strategy", "no"]),
            *(["--bf16", "true"] if self.in_bfloat16 else []),
            *extra,
        )
        return os.fspath(output / LAST_CHECKPOINT)

    def _score_tokenizer(self, tokenizer: str) -> dict[str, float]:
        from himtok_plugin.mask_tokenizer import MaskTokenizer
        from himtok_plugin.metrics.reconstruction import reconstruction_scores

        scores = reconstruction_scores(
            MaskTokenizer.from_pretrained(tokenizer), generate_masks(self.plan.held_out_masks, HELD_OUT_SEED)
        )
        return {f"IoU at {n} tokens": round(score["gIoU"], 4) for n, score in scores.items()}


def _varied(results: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first results, but at least one without and one with several targets where there are any."""
    kinds = {number: [r for r in results if len(r["target_masks"]) == number] for number in (0, 2)}
    special = [found[0] for found in kinds.values() if found]
    plain = [r for r in results if len(r["target_masks"]) == 1]
    return (plain[: count - len(special)] + special) or results[:count]


def _path(image: Any) -> str:
    return image["path"] if isinstance(image, dict) else image


def _rle(mask: dict[str, Any]) -> dict[str, Any]:
    return {"size": mask["size"], "counts": mask["counts"]}
