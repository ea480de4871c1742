"""Measure what fewer mask tokens and fewer log-probabilities cost: IoU and time per mask of a trained checkpoint.

    python examples/04_fewer_tokens.py [CHECKPOINT] [ROWS.jsonl] [--tokens 2 4 8] [--early_stop 0.5 0.7] [--limit 200]

Shows how many tokens a checkpoint needs, how much time early stopping saves, and whether the log-probabilities that a
server returns are enough for soft decoding. Takes an hour or more on 2 cores, and with --limit 30 a quarter of
an hour.

Every answer is decoded in four ways: hard, from its codes; softly from the 5 and from the 20 most likely tokens of each
step, as servers return them; and softly from all probabilities. IoU is that of all masks of a row together, averaged
over the rows. By default the shipped checkpoint answers the scenes that `himtok demo` writes.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from himtok_plugin import startup
from himtok_plugin.lmm.token_logprobs import code_probabilities_from_logprobs
from himtok_plugin.masks import load_mask
from himtok_plugin.metrics.segmentation import mask_iou
from himtok_plugin.prediction.predictor import Answer, MaskPredictor
from himtok_plugin.resources import default_checkpoint

MAX_NEW_TOKENS = 128
WAYS = ("hard", "top 5", "top 20", "soft")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("rows", nargs="?", type=Path, default=Path("himtok_demo/held_out/rows.jsonl"))
    parser.add_argument("--tokens", type=int, nargs="*", default=[2, 4, 8, 16])
    parser.add_argument("--early_stop", type=float, nargs="*", default=[0.3, 0.4, 0.5, 0.6, 0.7])
    parser.add_argument("--limit", type=int, default=200, help="maximum number of rows")
    parser.add_argument("--batch_size", type=int, default=16)
    arguments = parser.parse_args()
    checkpoint = arguments.checkpoint or default_checkpoint()
    rows = [json.loads(line) for line in arguments.rows.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row.get("masks") and len(row["messages"]) == 2][: arguments.limit]
    measurement = Measurement(checkpoint, rows, arguments.batch_size)
    print(f"{len(rows)} rows in batches of {arguments.batch_size}; ms: generation and decoding of the whole answer\n")
    print(f"| tokens | used | {' | '.join(WAYS)} | ms per mask |\n|{'---|' * (len(WAYS) + 3)}")
    for count in arguments.tokens:
        measurement.print_line(f"{count}", num_mask_tokens=count)
    for threshold in arguments.early_stop:
        measurement.print_line(f"early stop {threshold}", mask_early_stop=threshold)


class Measurement:
    """A loaded checkpoint and the rows that it answers."""

    def __init__(self, checkpoint: Path, rows: list[dict], batch_size: int):
        startup.activate("himtok")
        from swift.infer_engine import InferRequest
        from swift.pipelines.infer.infer import SwiftInfer

        options = ["--model", str(checkpoint), "--max_batch_size", str(batch_size), "--result_path", "unused.jsonl"]
        self.pipeline = SwiftInfer([*options, "--load_data_args", "false"])
        self.runtime = self.pipeline.template.tokenizer.himtok
        self.settings = self.runtime.settings
        self.truths = [merge_masks([load_mask(mask) for mask in row["masks"]]) for row in rows]
        self.requests = [InferRequest(messages=row["messages"][:-1], images=row["images"]) for row in rows]
        self.generate_answers()  # warm-up: the first pass takes longer

    def print_line(self, name: str, num_mask_tokens: int | None = None, mask_early_stop: float | None = None) -> None:
        """Generate answers with these options and print their line of the table."""
        self.runtime.settings = replace(self.settings, mask_early_stop=mask_early_stop)
        self.runtime.generated_mask_tokens = num_mask_tokens or self.runtime.num_mask_tokens
        started = time.perf_counter()
        answers = self.generate_answers()
        seconds = time.perf_counter() - started
        decoded = {"soft": [answer.message.himtok_masks for answer in answers], "hard": self.decode_answers(answers)}
        masks = [mask for found in decoded["soft"] for mask in found]
        with_logprobs = self.generate_answers(logprobs=True, top_logprobs=20)
        for k in (5, 20):
            decoded[f"top {k}"] = self.decode_answers(with_logprobs, k)
        scores = " | ".join(f"{self.compute_mean_iou(decoded[way]):.3f}" for way in WAYS)
        used = sum(len(mask.codes) for mask in masks) / max(len(masks), 1)
        print(f"| {name} | {used:.1f} | {scores} | {1000 * seconds / max(len(masks), 1):.0f} |", flush=True)

    def generate_answers(self, **options) -> list:
        """Return ms-swift's answer to each request."""
        from swift.infer_engine import RequestConfig

        config = RequestConfig(max_tokens=MAX_NEW_TOKENS, temperature=0, **options)
        return [r.choices[0] for r in self.pipeline.infer_engine.infer(self.requests, config, use_tqdm=False)]

    def decode_answers(self, answers: list, k: int | None = None) -> list[list]:
        """Decode the masks of answers softly from the k most likely tokens of each step; None decodes their codes."""
        texts = []
        for answer, truth in zip(answers, self.truths, strict=True):
            probabilities = None
            if k is not None:
                steps = [{**step, "top_logprobs": step["top_logprobs"][:k]} for step in answer.logprobs["content"]]
                _, probabilities = code_probabilities_from_logprobs(steps, self.runtime.codebook_size)
            texts.append(Answer(answer.message.content, truth.shape, probabilities))
        return MaskPredictor(self.runtime.mask_tokenizer())(texts)

    def compute_mean_iou(self, found: list[list]) -> float:
        """Average the IoU of the merged masks over the rows."""
        ious = []
        for masks, truth in zip(found, self.truths, strict=True):
            ious.append(mask_iou(merge_masks([mask.mask for mask in masks]), truth) if masks else 0.0)
        return float(np.mean(ious))


def merge_masks(masks: list[np.ndarray]) -> np.ndarray:
    """Return the union of masks."""
    return np.logical_or.reduce(masks)


if __name__ == "__main__":
    main()
