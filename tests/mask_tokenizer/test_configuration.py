"""configuration.py: every invalid field is rejected by name."""

import pytest
from tiny_models import FIELDS, tiny_config

from himtok_plugin.mask_tokenizer import MaskTokenizerConfig


def test_defaults_are_the_released_sizes_with_causal_codes():
    config = MaskTokenizerConfig()
    assert (config.image_size, config.num_mask_tokens, config.codebook_size, config.code_width) == (256, 32, 1024, 12)
    assert (config.grid_size, config.pixel_hidden_width) == (16, 2048)
    assert config.latent_layout == "transpose" and config.codebook_ready is False


def test_fields_survive_saving(tmp_path):
    config = tiny_config(latent_layout="legacy_reshape", normalize_codebook=True, output_scale=3.0)
    config.save_pretrained(tmp_path)
    again = MaskTokenizerConfig.from_pretrained(tmp_path)
    assert {name: getattr(again, name) for name in FIELDS} == FIELDS
    assert (again.latent_layout, again.normalize_codebook, again.output_scale) == ("legacy_reshape", True, 3.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 18}, "image_size=18: expected a multiple of patch_size=4"),
        ({"num_mask_tokens": 0}, "num_mask_tokens=0: expected a positive integer"),
        ({"codebook_size": 2.5}, "codebook_size=2.5: expected a positive integer"),
        ({"code_width": True}, "code_width=True: expected a positive integer"),
        ({"decoder_width": None}, "decoder_width=None: expected a positive integer"),
        ({"encoder_width": 15}, "encoder_width=15: expected a multiple of encoder_heads=2"),
        ({"decoder_heads": 3}, "decoder_width=16: expected a multiple of decoder_heads=3"),
        ({"latent_layout": "sideways"}, "latent_layout='sideways': expected one of"),
        ({"pixel_channel_multipliers": [1, 1]}, "2 levels upsample 2 times, expected patch_size=4 times"),
        ({"pixel_channel_multipliers": [1, 1, 0]}, "expected a list of positive integers"),
        ({"pixel_channel_multipliers": 3}, "pixel_channel_multipliers=3: expected a list of positive integers"),
        ({"pixel_channels": 6}, "pixel_channels=6: expected 1 times it to be a multiple of pixel_groups=4"),
        ({"output_scale": "5"}, "output_scale='5': expected a number"),
        ({"normalize_codebook": "no"}, "normalize_codebook='no': expected true or false"),
    ],
)
def test_a_field_out_of_range_is_named_with_its_value(fields, message):
    with pytest.raises(ValueError) as error:
        tiny_config(**fields)
    assert message in str(error.value)
