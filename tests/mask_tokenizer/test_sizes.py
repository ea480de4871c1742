"""sizes.py: the named sizes; large ones are built without memory, on the meta device."""

import pytest
import torch

from himtok_plugin.mask_tokenizer import SIZES, MaskTokenizer, MaskTokenizerConfig, build_mask_tokenizer


@pytest.mark.parametrize("size", SIZES)
def test_every_size_builds_and_its_heads_fit(size):
    with torch.device("meta"):
        model = MaskTokenizer(MaskTokenizerConfig(**SIZES[size]))
    config = model.config
    assert config.encoder_width == 64 * config.encoder_heads and config.decoder_width == 64 * config.decoder_heads


def test_parameter_counts_grow_with_the_size():
    counts = []
    for size in ("tiny", "pocket", "small", "base", "large"):
        with torch.device("meta"):
            model = MaskTokenizer(MaskTokenizerConfig(**SIZES[size]))
        counts.append(sum(p.numel() for p in model.parameters()))
    assert counts == sorted(counts) and counts[0] < 3e6


def test_large_is_the_default_configuration():
    defaults, large = MaskTokenizerConfig(), MaskTokenizerConfig(**SIZES["large"])
    assert large.to_dict() == defaults.to_dict()


def test_overrides_reach_the_model():
    model = build_mask_tokenizer("tiny", num_mask_tokens=4, encoder_layers=1, decoder_layers=1)
    side = model.config.image_size
    assert model.encode(torch.zeros(1, side, side)).shape == (1, 4)


@pytest.mark.parametrize(
    ("size", "overrides", "message"),
    [
        ("huge", {}, "size='huge': expected one of"),
        ("tiny", {"colour": 3}, "colour=3: expected a field of MaskTokenizerConfig"),
        ("tiny", {"model_type": "bert"}, "model_type='bert': expected a field of MaskTokenizerConfig"),
        ("tiny", {"codebook_size": -1}, "codebook_size=-1: expected a positive integer"),
    ],
)
def test_unknown_sizes_and_fields_are_refused(size, overrides, message):
    with pytest.raises(ValueError, match=message):
        build_mask_tokenizer(size, **overrides)
