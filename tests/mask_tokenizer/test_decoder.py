"""decoder.py and pixel_decoder.py: missing codes, and the shortcut of the released decoder."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import tiny_config, tiny_model

from himtok_plugin.mask_tokenizer.pixel_decoder import PixelDecoder, ResidualBlock


def test_the_grid_has_one_cell_per_patch(model):
    assert model.decoder(torch.randn(2, 4, 3)).shape == (2, 16, 4, 4)


def test_missing_codes_are_zero_after_the_embedding(model):
    """Only without bias is a zero code vector before the embedding the same as a missing code."""
    code_vectors = torch.randn(1, 2, 3)
    padded = F.pad(code_vectors, (0, 0, 0, 2))
    with torch.no_grad():
        model.decoder.decoder_embed.bias.normal_()
        assert not torch.allclose(model.decoder(code_vectors), model.decoder(padded), atol=1e-4)
        model.decoder.decoder_embed.bias.zero_()
        assert torch.allclose(model.decoder(code_vectors), model.decoder(padded), atol=1e-6)


def test_each_further_code_changes_the_mask(model):
    code_vectors = torch.randn(1, 4, 3)
    with torch.no_grad():
        grids = [model.decoder(code_vectors[:, :n]) for n in range(1, 5)]
    assert all((a - b).abs().max() > 1e-5 for a, b in zip(grids, grids[1:], strict=False))


def test_the_order_of_codes_matters(model):
    code_vectors = torch.randn(1, 4, 3)
    with torch.no_grad():
        assert not torch.allclose(model.decoder(code_vectors), model.decoder(code_vectors.flip(1)), atol=1e-5)


def test_where_channels_differ_the_inputs_own_residual_is_dropped():
    block = ResidualBlock(8, 4, groups=4)
    hidden = []
    block.conv2.register_forward_hook(lambda module, args, output: hidden.append(output))
    with torch.no_grad():
        result = block(torch.randn(1, 8, 5, 5))
    assert torch.allclose(result, hidden[0] + F.conv2d(hidden[0], block.nin_shortcut.weight))


def test_where_channels_agree_the_residual_is_the_input():
    block = ResidualBlock(8, 8, groups=4)
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 8, 5, 5)
    assert block.nin_shortcut is None and torch.equal(block(x), x)


def test_residual_convolutions_have_no_bias_and_upsampling_ones_do():
    decoder = PixelDecoder(tiny_config())
    names = {name for name, _ in decoder.named_parameters() if name.endswith("bias") and "norm" not in name}
    assert names == {"conv_in.bias", "conv_out.bias", "up.1.upsample_conv.bias", "up.2.upsample_conv.bias"}


def test_the_pixel_decoder_returns_the_mean_over_output_channels():
    decoder = PixelDecoder(tiny_config())
    torch.nn.init.zeros_(decoder.conv_out.weight)
    with torch.no_grad():
        decoder.conv_out.bias.copy_(torch.tensor([1.0, 4.0]))
        assert torch.allclose(decoder(torch.randn(2, 16, 4, 4)), torch.full((2, 16, 16), 2.5))


@pytest.mark.parametrize("mean", [-1.0, 0.5, 0.9])
def test_output_is_the_sigmoid_of_five_times_the_mean_less_a_half(mean):
    model = tiny_model()
    torch.nn.init.zeros_(model.pixel_decoder.conv_out.weight)
    with torch.no_grad():
        model.pixel_decoder.conv_out.bias.copy_(torch.tensor([mean - 1, mean + 1]))
        expected = torch.sigmoid(torch.tensor((mean - 0.5) * 5))
        assert torch.allclose(model.decode(torch.tensor([[0]])), expected.expand(1, 16, 16))
