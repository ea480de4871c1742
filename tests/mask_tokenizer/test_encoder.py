"""encoder.py: which tokens attend to which, and the two layouts of latents."""

import pytest
import torch
from tiny_models import random_squares, tiny_model

TOKENS = 4


def latents(model, squares, queries=None):
    with torch.no_grad():
        return model.encoder(squares, model.latent_tokens if queries is None else queries)


def change_of_codes_after_moving_latent(model, moved):
    """(k,) largest change of every code's latent when latent token `moved` is another one."""
    squares = random_squares(2)
    queries = model.latent_tokens.detach().clone()
    queries[moved] += torch.randn_like(queries[moved])
    return (latents(model, squares, queries) - latents(model, squares)).abs().amax(dim=(0, 2))


@pytest.mark.parametrize("moved", range(TOKENS))
def test_with_the_transposed_layout_no_code_sees_a_later_latent(moved):
    change = change_of_codes_after_moving_latent(tiny_model(), moved)
    assert (change[:moved] == 0).all() and (change[moved:] > 1e-4).all()


def test_with_the_legacy_reshape_the_last_latent_reaches_every_code():
    change = change_of_codes_after_moving_latent(tiny_model(latent_layout="legacy_reshape"), TOKENS - 1)
    assert (change > 1e-5).all()


def test_legacy_reshape_and_transpose_by_hand():
    """Two tokens of width 16: code i of the transpose sums token i, of the reshape every second number of memory."""
    rows = torch.arange(TOKENS * 16, dtype=torch.float32).view(1, TOKENS, 16)
    for layout, expected in (
        ("transpose", rows[0].sum(1)),
        ("legacy_reshape", rows.flatten().view(16, TOKENS).sum(0)),
    ):
        encoder = tiny_model(latent_layout=layout).encoder
        torch.nn.init.ones_(encoder.conv_out.weight)
        torch.nn.init.zeros_(encoder.conv_out.bias)
        assert torch.allclose(encoder._project(rows)[0, :, 0], expected)


def test_image_tokens_never_see_latents():
    model = tiny_model()
    seen = []
    model.encoder.transformer[-1].register_forward_hook(lambda module, args, output: seen.append(output))
    latents(model, random_squares(1))
    latents(model, random_squares(1), torch.randn_like(model.latent_tokens))
    image = 1 + model.config.grid_size**2
    assert torch.equal(seen[0][:, :image], seen[1][:, :image])
    assert not torch.allclose(seen[0][:, image:], seen[1][:, image:])


def test_attention_mask_by_hand():
    """Two image tokens, then two latents."""
    allowed = tiny_model().encoder._allowed_attention(2, 2, torch.device("cpu"))
    assert allowed.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_every_latent_sees_the_whole_image():
    model = tiny_model()
    blank = torch.zeros(1, 16, 16)
    dotted = blank.clone()
    dotted[0, -1, -1] = 1
    change = (latents(model, blank) - latents(model, dotted)).abs().amax(dim=(0, 2))
    assert (change > 1e-6).all()
