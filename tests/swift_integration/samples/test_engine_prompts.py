"""All engines get the same prompt, so that a model is asked under vLLM what it was trained on.

An engine such as vLLM expands the image tokens of a prompt itself, as the base model's own processor does.
tests/swift_integration/vllm_engine/ does the same with vLLM's processors.
"""

import importlib.util

import pytest
from engine_prompts import KNOWN_TO_VLLM, QUESTIONS, load_template, write_prompts
from tiny_bases import BASES

needs_qwen = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("qwen_vl_utils", "decord")),
    reason="ms-swift asks for qwen_vl_utils and decord",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[needs_qwen] if name.startswith("Qwen") else []) for name in KNOWN_TO_VLLM]
)
def test_prompt_for_vllm_with_expanded_images_is_the_trained_one(name, world, tmp_path):
    template = load_template(BASES[name](tmp_path / name), world.mask_tokenizer)
    for question in QUESTIONS.values():
        trained, given, images = write_prompts(template, question)
        text = template.tokenizer.decode(given, skip_special_tokens=False)
        # LLaVA-OneVision cuts an image into tiles only if it gets the images one by one, not as those of one text.
        batch = images if "llava" in name else [images]
        expanded = template.processor(text=[text], images=batch, add_special_tokens=False)["input_ids"]
        assert [int(token) for token in expanded[0]] == trained, question
        assert len(given) < len(trained)
