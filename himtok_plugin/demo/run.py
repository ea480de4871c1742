"""`himtok demo`: segment generated held-out scenes with a checkpoint, score the masks and draw them.

Contract: `Demo(...).run()` runs `swift infer` on generated scenes, as a user would, and writes to its folder: scenes,
log, `results.jsonl`, `scores.json`, and `demo.png` with image, truth, prediction and the mask after each number of
tokens. `training.TrainingDemo` trains the checkpoint first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from himtok_plugin.data.generated.scenes import write_rows
from himtok_plugin.mask_text import IMAGE_PLACEHOLDER
from himtok_plugin.mask_tokenizer.released_weights import SIDECAR_FOLDER
from himtok_plugin.masks import load_mask
from himtok_plugin.masks.drawing import to_rgb

from .figure import DemoRow, draw_demo_figure

HELD_OUT_SEED = 2
SCENES = 100  # held-out scenes of the demo without training
PICTURE_ROWS = 6
POLL_SECONDS = 0.5
OnStep = Callable[[str, int, int], None]  # (name of the step, done, total)


class CommandFailed(RuntimeError):
    """A `swift` command exited with an error."""


class DemoFolder:
    """The steps that all demos share, in one folder.

    Args:
        folder: everything is written here.
        report: called with the name of the current step and its progress.
    """

    # What it writes into its folder; `himtok demo` replaces these only where it has written them itself.
    WRITES: tuple[str, ...] = ("held_out", "scores.json", "demo.png")

    def __init__(self, folder: Path, report: OnStep) -> None:
        self.folder = folder.resolve()
        self.report = report
        self.minutes: dict[str, float] = {}

    def write_scores(self, scores: dict[str, Any], result: str, mask_tokenizer: Path) -> dict[str, Any]:
        """Add the minutes of all steps to the scores, write `scores.json` and `demo.png`, and return the scores.

        Args:
            scores: metrics by name.
            result: name of the result file to draw, without its ending.
            mask_tokenizer: folder of the mask tokenizer that decodes the prefixes.
        """
        scores["minutes"] = {name: round(value, 1) for name, value in self.minutes.items()}
        self._draw(result, mask_tokenizer)
        (self.folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
        return scores

    def infer(self, model: str, held_out: Path, name: str) -> dict[str, Any]:
        """Run `swift infer` on samples, write `<name>.jsonl` and return its scores."""
        from himtok_plugin.evaluation.scoring import score_results

        result = self.folder / f"{name}.jsonl"
        result.unlink(missing_ok=True)  # ms-swift appends
        self.run_swift(
            f"inference, {name}",
            None,
            "infer",
            *("--plugin", "himtok", "--model", model, "--val_dataset", os.fspath(held_out)),
            *("--result_path", os.fspath(result), "--max_batch_size", "64", "--max_new_tokens", "96"),
            *("--temperature", "0", "--stream", "false"),
        )
        return score_results(result)

    def run_swift(self, name: str, progress_file: Path | None, *arguments: str) -> None:
        """Run a `swift` command with its output in a log file.

        Args:
            name: name of the step, for the log file and the report.
            progress_file: ms-swift's `logging.jsonl`, from which progress is reported; None: there is none.
            arguments: of `swift`.
        Raises:
            CommandFailed: the command exited with an error; the message names the log file.
        """
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
                if process.poll() is None:  # interrupted: do not leave the command running
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
                continue  # a partly written line, or not a training step
            self.report(name, int(done), int(total))
            return

    def _draw(self, name: str, tokenizer: Path) -> None:
        """Write demo.png: the first held-out scenes with one target, and one scene without and with two targets."""
        import torch

        from himtok_plugin.mask_tokenizer import MaskTokenizer
        from himtok_plugin.masks import Masks
        from himtok_plugin.metrics.reconstruction import token_counts
        from himtok_plugin.metrics.segmentation import mask_iou

        model = MaskTokenizer.from_pretrained(tokenizer)
        k = model.config.num_mask_tokens
        rows = []
        with (self.folder / f"{name}.jsonl").open(encoding="utf-8") as file:
            results = [json.loads(line) for line in file]
        for result in _choose_varied(results, PICTURE_ROWS):
            image = to_rgb(Image.open(_image_path(result["images"][0])))
            size = (image.height, image.width)
            truth = Masks.load(result["target_masks"], size).union() if result["target_masks"] else np.zeros(size, bool)
            growth: dict[int, np.ndarray] = {}
            prediction = None
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
        draw_demo_figure(rows).save(self.folder / "demo.png")


class Demo(DemoFolder):
    """Segments held-out scenes with a trained checkpoint; for the arguments see `DemoFolder`."""

    WRITES = (*DemoFolder.WRITES, "results.jsonl", "results.jsonl.run.json", "inference_results.log")

    def run(self, checkpoint: str | os.PathLike | None = None, count: int = SCENES) -> dict[str, Any]:
        """Generate scenes, run inference, score and draw.

        Args:
            checkpoint: folder of a segmenting LMM; by default the checkpoint shipped with the package.
            count: number of scenes.
        Returns:
            Scores of the LMM, and minutes per step.
        Raises:
            CommandFailed: `swift infer` exited with an error; the message names its log file.
        """
        from himtok_plugin.resources import default_checkpoint

        checkpoint = default_checkpoint() if checkpoint is None else Path(checkpoint)
        self.folder.mkdir(parents=True, exist_ok=True)
        held_out = write_rows(self.folder / "held_out", count, HELD_OUT_SEED)
        scores = {f"{count} held-out scenes": self.infer(os.fspath(checkpoint), held_out, "results")}
        return self.write_scores(scores, "results", checkpoint / SIDECAR_FOLDER)


def _choose_varied(results: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first results with one target, then one without and one with two targets, if there are any."""
    kinds = {number: [r for r in results if len(r["target_masks"]) == number] for number in (0, 2)}
    special = [found[0] for found in kinds.values() if found]
    plain = [r for r in results if len(r["target_masks"]) == 1]
    return (plain[: count - len(special)] + special) or results[:count]


def _image_path(image: Any) -> str:
    return image["path"] if isinstance(image, dict) else image


def _rle(mask: dict[str, Any]) -> dict[str, Any]:
    return {"size": mask["size"], "counts": mask["counts"]}
