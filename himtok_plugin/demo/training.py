"""`himtok demo --train`: train a segmenting LMM from scratch on generated scenes, then run the demo with it.

Contract: `TrainingDemo(...).run()` runs all three stages with the shipped `stage*_tiny_full` configs, as a user would,
and leaves data, checkpoints, logs, scores and picture in its folder.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from himtok_plugin.data.generated.scenes import generate_masks, generate_scenes, write_mask_rows, write_rows
from himtok_plugin.mask_tokenizer.released_weights import SIDECAR_FOLDER
from himtok_plugin.resources import config_path
from himtok_plugin.words.known_words import KnownWords

from .run import HELD_OUT_SEED, DemoFolder, OnStep

TRAIN_SEED, TEXT_SEED = 1, 3
TRAIN_TURNS = 3  # questions per training image: reading the image is most of the work
LAST_CHECKPOINT = "last-checkpoint"  # a link that ms-swift makes
MIN_BFLOAT16_GAIN = 1.5  # speed-up of matrix products from which training is faster: casting costs time as well
Item = TypeVar("Item")


@dataclass(frozen=True)
class DemoPlan:
    """The size of a training run.

    Attributes:
        train_scenes, held_out_scenes: number of images with questions.
        train_masks, held_out_masks: number of masks for stage 1.
        steps: of stages 1 to 3; None: those of the config.
        stage_one: further options of stage 1.
        measured: stages after which the held-out scenes are segmented and scored.
    """

    train_scenes: int
    held_out_scenes: int
    train_masks: int
    held_out_masks: int
    steps: tuple[int | None, int | None, int | None] = (None, None, None)
    stage_one: tuple[str, ...] = ()
    measured: tuple[int, ...] = (2, 3)


FULL = DemoPlan(train_scenes=18000, held_out_scenes=300, train_masks=40000, held_out_masks=500)
# Starting `swift` takes most of the time of a short run, so only the last stage is measured.
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
    """Whether training in bfloat16, which the configs do not use, is faster on this CPU: with AMX it is, mostly not.

    Measured in a few milliseconds on a matrix product of the size of the demo's LMM.
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

    return seconds(torch.float32) > MIN_BFLOAT16_GAIN * seconds(torch.bfloat16)


class TrainingDemo(DemoFolder):
    """Trains all stages from scratch and segments held-out scenes.

    Args:
        folder, report: see `DemoFolder`.
        plan: size of the run.
    """

    WRITES = (
        *DemoFolder.WRITES,
        *("masks.jsonl", "held_out_masks.jsonl", "train", "lmm", "mask_tokenizer_untrained"),
        *(f"stage{number}" for number in (1, 2, 3)),
        *(f"stage{number}.log" for number in (1, 2, 3)),
        *(f"stage{number}_results.jsonl" for number in (2, 3)),
        *(f"stage{number}_results.jsonl.run.json" for number in (2, 3)),
        *(f"inference_stage{number}_results.log" for number in (2, 3)),
    )

    def __init__(self, folder: Path, plan: DemoPlan, report: OnStep) -> None:
        super().__init__(folder, report)
        self.plan = plan
        self.in_bfloat16 = bfloat16_is_faster()

    def run(self) -> dict[str, Any]:
        """Generate data, train stages 1 to 3, run inference, score and draw.

        Returns:
            Reconstruction IoU per number of tokens, scores of the LMM per measured stage, minutes per step.
        Raises:
            CommandFailed: a `swift` command exited with an error; the message names its log file.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        train, held_out = self._write_data()
        tokenizer = self._stage_one()
        lmm = self._build_lmm()
        checkpoints = {2: self._stage(2, lmm, train, held_out, "--mask_tokenizer", tokenizer)}
        checkpoints[3] = self._stage(3, checkpoints[2], train, held_out)
        scores: dict[str, Any] = {"tokenizer": self._score_tokenizer(tokenizer)}
        for stage in self.plan.measured:
            scores[f"stage {stage}"] = self.infer(checkpoints[stage], held_out, f"stage{stage}_results")
        return self.write_scores(scores, "stage3_results", Path(checkpoints[3]) / SIDECAR_FOLDER)

    def _write_data(self) -> tuple[Path, Path]:
        plan = self.plan

        def counted(name: str, count: int) -> Callable[[Iterable[Item]], Iterator[Item]]:
            def progress(items: Iterable[Item]) -> Iterator[Item]:
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
        folder = build_tiny_internvl(self.folder / "lmm", texts, "demo")
        KnownWords(frozenset()).save(folder)  # nothing so far: each stage adds the words of its questions
        return os.fspath(folder)

    def _stage_one(self) -> str:
        import torch

        from himtok_plugin.mask_tokenizer import build_mask_tokenizer

        torch.manual_seed(TRAIN_SEED)
        fresh = self.folder / "mask_tokenizer_untrained"
        build_mask_tokenizer("tiny").save_pretrained(fresh)
        rows = self.folder / "masks.jsonl", self.folder / "held_out_masks.jsonl"
        return self._stage(1, os.fspath(fresh), *rows, *self.plan.stage_one)

    def _stage(self, number: int, model: str, train: Path, held_out: Path, *extra: str) -> str:
        """Run `swift sft` with the config of a stage and return its last checkpoint."""
        output = self.folder / f"stage{number}"
        shutil.rmtree(output, ignore_errors=True)  # it may hold the checkpoint of an earlier run
        steps = self.plan.steps[number - 1]
        self.run_swift(
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
        ious = {f"IoU at {n} tokens": score["gIoU"] for n, score in scores.items()}
        return {name: round(iou, 4) for name, iou in ious.items() if iou is not None}  # None: no held-out masks
