"""Prompts with images, as ms-swift's template writes them for its own engine and for vLLM."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny_bases import BASES

KNOWN_TO_VLLM = [name for name in BASES if name != "Llama-3.2-11B-Vision-Instruct"]  # vLLM 0.32 has no class for it
QUESTIONS = {
    "one image": "<image>Segment it.",
    "an image between line breaks": "Look:\n<image>\nSegment it.",
    "two images": "<image><image>Which one has it?",
}


def load_template(model: Path, mask_tokenizer: Path) -> Any:
    """The template of `swift infer --plugin himtok`."""
    from swift.arguments import InferArguments

    return InferArguments(model=str(model), mask_tokenizer=str(mask_tokenizer)).get_template()


def write_prompts(template: Any, question: str) -> tuple[list[int], list[int], list[Image.Image]]:
    """Token ids for ms-swift's own engine, with expanded images; those for vLLM, without; the images."""
    noise = np.random.default_rng(0).integers(0, 255, (2, 48, 64, 3), dtype=np.uint8)
    images = [Image.fromarray(noise[i]) for i in range(question.count("<image>"))]
    ids = []
    for mode in ("transformers", "vllm"):
        template.set_mode(mode)
        encoded = template.encode({"messages": [{"role": "user", "content": question}], "images": list(images)})
        ids.append([int(token) for token in encoded["input_ids"]])
    return *ids, images
