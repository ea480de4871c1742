"""The code scheme "box": the first codes are the object's box, the others its shape, each refining those before."""

import json

import pytest
import torch
from tiny_models import tiny_model

from himtok_plugin.hierarchical_loss import HierarchicalMaskLoss, mask_bce, mask_dice
from himtok_plugin.mask_tokenizer import MaskTokenizer, MaskTokenizerConfig
from himtok_plugin.mask_tokenizer.box.codebook_fit import fit_components, fit_residual_codebooks, kmeans
from himtok_plugin.mask_tokenizer.box.objective import BoxObjective

SIDE = 64


def box_config(**fields):
    small = {"image_size": SIDE, "num_mask_tokens": 6, "codebook_size": 64, "code_width": 20, "canvas_size": 16}
    others = {"code_scheme": "box", "shape_hidden_width": 16, "output_scale": 12.0}
    return MaskTokenizerConfig(**{**small, **others, **fields})


def draw_ellipses(count, seed=0):
    """(count, s, s) masks of ellipses and of pairs of them."""
    generator = torch.Generator().manual_seed(seed)
    yy, xx = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")

    def ellipse():
        x, y = (torch.rand(2, generator=generator) * 40 + 12).tolist()
        a, b = (torch.rand(2, generator=generator) * 10 + 3).tolist()
        return ((xx - x) / a) ** 2 + ((yy - y) / b) ** 2 <= 1

    return torch.stack([ellipse() | (ellipse() if i % 2 else ellipse() & False) for i in range(count)]).float()


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = MaskTokenizer(box_config()).train()
    objective, squares = BoxObjective(model, collecting_steps=1), draw_ellipses(256)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for step in range(40):
        output = objective(squares[torch.randperm(256)[:64]] if step > 1 else squares, step)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output)
    return model.eval(), losses


def iou(first, second):
    first, second = first >= 0.5, second >= 0.5
    return ((first & second).sum((1, 2)) / (first | second).sum((1, 2))).mean().item()


def test_collecting_steps_have_no_codes_and_then_all_parts_are_placed(trained):
    model, losses = trained
    assert losses[0].codes is None and set(losses[0].terms) == {"reconstruction"}
    assert losses[1].codes.shape == (256, 6) and set(losses[1].terms) == {"reconstruction", "commitment", "prefix"}
    assert model.config.codebook_ready
    assert losses[-1].terms["reconstruction"] < losses[1].terms["reconstruction"] < losses[0].terms["reconstruction"]


def test_masks_that_were_not_trained_on_come_back_and_better_with_more_codes(trained):
    model, _ = trained
    squares = draw_ellipses(64, seed=1)
    codes = model.encode(squares)
    assert codes.shape == (64, 6) and codes.dtype == torch.int64
    ious = [iou(model.decode(codes[:, :n]), squares) for n in range(1, 7)]
    assert ious == sorted(ious) and ious[-1] > 0.75


def test_probabilities_of_one_decode_like_codes_and_missing_codes_add_nothing(trained):
    model, _ = trained
    codes = model.encode(draw_ellipses(3, seed=2))
    one_hot = torch.nn.functional.one_hot(codes, 64).float()
    assert torch.allclose(model.decode_probabilities(one_hot), model.decode(codes), atol=1e-5)
    one_hot[:, 4:] = 0
    assert torch.allclose(model.decode_probabilities(one_hot), model.decode(codes[:, :4]), atol=1e-5)


def test_soft_codes_of_a_box_have_a_gradient(trained):
    model, _ = trained
    logits = torch.zeros(1, 6, 64, requires_grad=True)
    model.decode_probabilities(logits.softmax(-1)).sum().backward()
    assert (logits.grad.abs().amax(-1) > 0).all()


def test_a_search_gives_masks_that_are_as_near_or_nearer(trained):
    model, _ = trained
    squares = draw_ellipses(8, seed=3)
    near, searched = model.encode(squares), model.encode(squares, candidates=4)
    assert iou(model.decode(searched), squares) >= iou(model.decode(near), squares)
    assert not torch.equal(near, searched)


def test_moving_an_object_by_a_cell_changes_the_box_codes_only(trained):
    model, _ = trained
    square = torch.zeros(1, SIDE, SIDE)
    square[:, 8:24, 8:24] = 1
    codes, moved = model.encode(square), model.encode(square.roll(16, dims=2))
    assert not torch.equal(codes[:, :3], moved[:, :3]) and torch.equal(codes[:, 3:], moved[:, 3:])


def test_an_empty_mask_stays_empty(trained):
    model, _ = trained
    assert not (model.decode(model.encode(torch.zeros(1, SIDE, SIDE))) >= 0.5).any()


def test_it_is_saved_and_loaded_and_keeps_its_codes_in_half_precision(trained, tmp_path):
    model, _ = trained
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["box_tokens"] == 3 and "encoder_layers" not in saved and "pixel_channels" not in saved
    squares = draw_ellipses(16, seed=4)
    again = MaskTokenizer.from_pretrained(tmp_path)
    assert torch.equal(again.encode(squares), model.encode(squares))
    half = MaskTokenizer.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.quantize.shape_codebooks.weight.dtype == torch.float32
    assert iou(half.decode(half.encode(squares)), squares) > 0.75


def test_too_few_shapes_for_the_codebooks_are_reported():
    model = MaskTokenizer(box_config()).train()
    with pytest.warns(UserWarning, match="continuous_warmup_steps=0: got 8 shapes for codebooks of 64 codes"):
        BoxObjective(model)(draw_ellipses(8), 0)


def test_a_step_gives_gradients_to_everything_that_is_trained():
    torch.manual_seed(0)
    model = MaskTokenizer(box_config()).train()
    BoxObjective(model)(draw_ellipses(64), 0).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert not without


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"code_scheme": "circle"}, "code_scheme='circle': expected one of"),
        ({"codebook_size": 100}, "codebook_size=100: expected a power of two"),
        ({"box_tokens": 6}, "box_tokens=6: expected less than num_mask_tokens=6"),
        ({"code_width": 4}, "code_width=4: expected more than 4"),
        ({"canvas_size": 0}, "canvas_size=0: expected a positive integer"),
    ],
)
def test_fields_out_of_range_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        box_config(**fields)


def test_components_are_those_with_most_variance():
    torch.manual_seed(0)
    canvases = torch.randn(500, 1, 1) * torch.eye(4) + 0.01 * torch.randn(500, 4, 4) + 3
    mean, components = fit_components(canvases, 2)
    assert torch.allclose(mean, canvases.mean(0).flatten())
    assert torch.allclose(components[0].abs().view(4, 4), torch.eye(4) / 2, atol=0.05)
    assert torch.allclose(components @ components.T, torch.eye(2), atol=1e-5)
    _, few = fit_components(canvases[:2], 4)  # a trial with two masks
    assert torch.allclose(few @ few.T, torch.eye(4), atol=1e-5)


def test_features_of_codes_say_alike_of_box_and_shape_what_they_mean(trained):
    codes = torch.arange(64)  # 2, 2, 1 and 1 bits
    features = trained[0].quantize.code_features()
    boxes, shapes = features[:, : 4 + 4 + 2 + 2], features[:, 4 + 4 + 2 + 2 :]
    torch.testing.assert_close(boxes.var(0).sum(), torch.tensor(1.0))
    torch.testing.assert_close(shapes.var(0).sum(), torch.tensor(1.0))
    assert shapes.shape[1] == 3 * 16  # three of six codes are of the shape
    level = codes >> 4  # of the centre's x
    for wanted in range(4):
        assert boxes[:, wanted].topk(16).indices.sort().values.equal(codes[level == wanted])
    first = (boxes[level == 0][0] - boxes[level == 1][0]).norm()
    assert first < (boxes[level == 0][0] - boxes[level == 3][0]).norm()  # neighbours are alike


def test_codebooks_refine_each_other():
    torch.manual_seed(0)
    corners = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    offsets = torch.tensor([[0.5, 0.0], [-0.5, 0.0], [0.0, 0.5], [0.0, -0.5]])
    points = (corners[:, None] + offsets).flatten(0, 1).repeat(50, 1)
    first, second = fit_residual_codebooks(points, 2, 4)
    if torch.cdist(first, corners).amin(1).max() < 0.1:  # k-means may find another optimum
        assert torch.cdist(second, offsets).amin(1).max() < 0.1
    assert (points - first[torch.cdist(points, first).argmin(1)]).norm(dim=1).max() < 11
    assert kmeans(points[:3], 5).shape == (5, 2)


def test_prefixes_are_compared_with_sharp_masks(trained):
    model, _ = trained
    squares = draw_ellipses(2, seed=5)
    probabilities = torch.nn.functional.one_hot(model.encode(squares), 64).float()
    losses = HierarchicalMaskLoss()(model, probabilities, squares, levels=torch.tensor([4]))
    prefix = model.decode(model.encode(squares)[:, :4])
    expected = mask_bce(prefix, squares) + 0.25 * mask_dice(prefix, squares)
    assert torch.allclose(losses.hierarchical, expected, atol=1e-4)


def test_a_shorter_mask_tokenizer_has_the_first_codes_and_the_same_masks(trained):
    model, squares = trained[0], draw_ellipses(8, seed=3)
    codes, shorter = model.encode(squares), model.shorten(4)
    assert shorter.config.num_mask_tokens == 4 and model.config.num_mask_tokens == 6
    assert torch.equal(shorter.encode(squares), codes[:, :4])
    assert torch.equal(shorter.decode(codes[:, :4]), model.decode(codes[:, :4]))
    assert not shorter.training and shorter.config.codebook_ready


def test_only_the_box_scheme_is_shortened_and_only_to_more_codes_than_the_box_takes(trained):
    for number in (3, 7):
        with pytest.raises(ValueError, match=f"num_mask_tokens={number}: expected 4 to 6"):
            trained[0].shorten(number)
    with pytest.raises(ValueError, match="code_scheme='square': expected 'box'"):
        tiny_model().shorten(4)
