import sys

import pytest
import torch
from tiny_parts import ARCHITECTURE, FOLDER, IMAGE_SIDE, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture
def modules(monkeypatch):
    """The example's modules, imported as run.py imports them."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import base_model
    import photographs
    import questions

    yield base_model, photographs, questions
    for name in ("base_model", "descriptions", "photographs", "picture", "questions", "warm_up"):
        sys.modules.pop(name, None)


@pytest.fixture
def base(modules, tmp_path):
    """Folder of a base model of tiny random parts."""
    pytest.importorskip("timm")
    base_model = modules[0]
    folder = tmp_path / "base"
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    tower = base_model.build_vision_tower(ARCHITECTURE)
    base_model.join_parts(LlamaForCausalLM(config), tokenizer, tower, IMAGE_SIDE, 0, folder)
    return folder
