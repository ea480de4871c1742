"""vLLM expands the images of a prompt to the token ids that the model was trained on, in every family that it knows."""

import pytest
from engine_prompts import KNOWN_TO_VLLM, QUESTIONS, load_template, write_prompts
from tiny_bases import BASES

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("name", KNOWN_TO_VLLM)
def test_vllm_expands_prompts_to_the_trained_ones(name, world, tmp_path):
    base = BASES[name](tmp_path / name)
    template = load_template(base, world.mask_tokenizer)
    expand = build_expander(base)
    for kind, question in QUESTIONS.items():
        if name.startswith("gemma-3") and kind == "an image between line breaks":
            # vLLM joins the line breaks behind an image with the text's, and then finds no image (vllm#27538).
            continue
        trained, given, images = write_prompts(template, question)
        assert expand(given, images) == trained, question


def build_expander(model):
    """vLLM's own processing of a prompt: (token ids, images) -> token ids with expanded images."""
    from vllm.config import ModelConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.processing.context import TimingContext
    from vllm.multimodal.processing.inputs import ProcessorInputs

    config = ModelConfig(model=str(model), dtype="float32", max_model_len=1024)
    processor = MULTIMODAL_REGISTRY.create_processor(config)

    def expand(ids, images):
        items = processor.info.parse_mm_data({"image": images})
        inputs = ProcessorInputs(prompt=ids, mm_data_items=items)
        return list(processor.apply(inputs, TimingContext(enabled=False))["prompt_token_ids"])

    return expand
