"""What fewer tokens and fewer probabilities cost: IoU and time per mask of a trained checkpoint.

    python examples/04_fewer_tokens.py [CHECKPOINT] [ROWS.jsonl] [--tokens 2 4 8] [--early_stop 0.5 0.7]

Answers every row greedily with at most so many tokens per mask, and with masks that end early. Each answer is decoded
four ways: its codes alone, and its code probabilities from the 5 and the 20 likeliest tokens (as servers return them)
and in full. IoU is the mean over the rows of all masks of a row together. By default the checkpoint that ships answers
the scenes that `himtok demo` leaves.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from himtok_plugin import startup
from himtok_plugin.lmm.token_logprobs import code_probabilities_of_logprobs
from himtok_plugin.masks.sources import load_mask
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
    parser.add_argument("--limit", type=int, default=200, help="rows at most")
    parser.add_argument("--batch_size", type=int, default=16)
    arguments = parser.parse_args()
    checkpoint = arguments.checkpoint or default_checkpoint()
    rows = [json.loads(line) for line in arguments.rows.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row.get("masks") and len(row["messages"]) == 2][: arguments.limit]
    measure = Measurement(checkpoint, rows, arguments.batch_size)
    print(f"{len(rows)} rows in batches of {arguments.batch_size}; ms: the whole answer's generation and decoding\n")
    print(f"| tokens | used | {' | '.join(WAYS)} | ms per mask |\n|{'---|' * (len(WAYS) + 3)}")
    for count in arguments.tokens:
        measure(f"{count}", num_mask_tokens=count)
    for threshold in arguments.early_stop:
        measure(f"early stop {threshold}", mask_early_stop=threshold)


class Measurement:
    """A checkpoint and rows; calling it prints one line of the table."""

    def __init__(self, checkpoint: Path, rows: list[dict], batch_size: int):
        startup.activate("himtok")
        from swift.infer_engine import InferRequest
        from swift.pipelines.infer.infer import SwiftInfer

        options = ["--model", str(checkpoint), "--max_batch_size", str(batch_size), "--result_path", "unused.jsonl"]
        self.pipeline = SwiftInfer([*options, "--load_data_args", "false"])
        self.runtime = self.pipeline.template.tokenizer.himtok
        self.settings = self.runtime.settings
        self.truth = [union([load_mask(mask) for mask in row["masks"]]) for row in rows]
        self.requests = [InferRequest(messages=row["messages"][:-1], images=row["images"]) for row in rows]
        self.answers()  # the first ones take longer, whatever is measured

    def __call__(self, name: str, num_mask_tokens: int | None = None, mask_early_stop: float | None = None) -> None:
        """One line of the table, of answers generated under these options."""
        self.runtime.settings = replace(self.settings, mask_early_stop=mask_early_stop)
        self.runtime.generated_mask_tokens = num_mask_tokens or self.runtime.num_mask_tokens
        started = time.perf_counter()
        answers = self.answers()
        seconds = time.perf_counter() - started
        masks = [mask for found in self.soft(answers) for mask in found]
        listed = self.answers(logprobs=True, top_logprobs=20)
        decoded = {"hard": self.decoded(answers), "soft": self.soft(answers)}
        for k in (5, 20):
            decoded[f"top {k}"] = self.decoded(listed, k)
        scores = " | ".join(f"{self.iou(decoded[way]):.3f}" for way in WAYS)
        used = sum(len(mask.codes) for mask in masks) / max(len(masks), 1)
        print(f"| {name} | {used:.1f} | {scores} | {1000 * seconds / max(len(masks), 1):.0f} |", flush=True)

    def answers(self, **options) -> list:
        """ms-swift's answer to each request."""
        from swift.infer_engine import RequestConfig

        config = RequestConfig(max_tokens=MAX_NEW_TOKENS, temperature=0, **options)
        return [r.choices[0] for r in self.pipeline.infer_engine.infer(self.requests, config, use_tqdm=False)]

    def soft(self, answers: list) -> list[list]:
        """Masks that came with the answers, from all probabilities."""
        return [answer.message.himtok_masks for answer in answers]

    def decoded(self, answers: list, k: int | None = None) -> list[list]:
        """Masks of the answers' texts, from the k likeliest tokens of each step; None: from the codes."""
        asked = []
        for answer, truth in zip(answers, self.truth, strict=True):
            probabilities = None
            if k is not None:
                steps = [{**step, "top_logprobs": step["top_logprobs"][:k]} for step in answer.logprobs["content"]]
                _, probabilities = code_probabilities_of_logprobs(steps, self.runtime.codebook_size)
            asked.append(Answer(answer.message.content, truth.shape, probabilities))
        return MaskPredictor(self.runtime.mask_tokenizer())(asked)

    def iou(self, found: list[list]) -> float:
        """Mean IoU over the rows."""
        ious = []
        for masks, truth in zip(found, self.truth, strict=True):
            ious.append(mask_iou(union([mask.mask for mask in masks]), truth) if masks else 0.0)
        return float(np.mean(ious))


def union(masks: list[np.ndarray]) -> np.ndarray:
    return np.logical_or.reduce(masks)


if __name__ == "__main__":
    main()
