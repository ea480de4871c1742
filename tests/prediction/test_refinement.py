"""Refiners: tiny SAM models with random weights, their prompts, and the geometry of zooming in."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from himtok_plugin.prediction.refinement import (
    SAM_KINDS,
    SamRefiner,
    choose_zoom_window,
    choose_zoomed_mask,
    make_prompt_logits,
    sample_inner_points,
)

SIDE, WIDTH = 64, 32  # of the models' square, and of all their layers
H, W = 40, 60
PROMPTS = {"hidden_size": WIDTH, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 16}
DECODER = {
    "hidden_size": WIDTH,
    "mlp_dim": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "iou_head_hidden_dim": 16,
    "iou_head_depth": 2,
}


def image_processor(name):
    """A class of transformers; the oldest releases have only the fast variants of some, under longer names."""
    return getattr(transformers, name, None) or getattr(transformers, f"{name}Fast")


def tiny_sam():
    vision = transformers.SamVisionConfig(
        hidden_size=16,
        output_channels=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIDE,
        num_pos_feats=WIDTH // 2,
        window_size=2,
        global_attn_indexes=[0],
        initializer_range=0.02,
    )
    config = transformers.SamConfig(
        vision_config=vision.to_dict(), prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER
    )
    size = {"longest_edge": SIDE}
    square = {"height": SIDE, "width": SIDE}
    images = transformers.SamImageProcessor(size=size, pad_size=square)
    return transformers.SamModel(config), transformers.SamProcessor(images)


def tiny_sam2():
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 1, 1],
        window_size_per_stage=[4, 2, 2, 2],
        window_positional_embedding_background_size=[2, 2],
        global_attention_blocks=[3],
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone.to_dict(),
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=WIDTH,
    )
    config = transformers.Sam2Config(
        vision_config=vision.to_dict(), prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER
    )
    images = image_processor("Sam2ImageProcessor")(size={"height": SIDE, "width": SIDE})
    return transformers.Sam2Model(config), transformers.Sam2Processor(images)


def tiny_sam3():
    vision = {
        "backbone_config": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 16,
            "window_size": 2,
            "global_attn_indexes": [0],
            "pretrain_image_size": SIDE,
        },
        "fpn_hidden_size": WIDTH,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    }
    config = transformers.Sam3TrackerConfig(
        vision_config=vision, prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER
    )
    images = image_processor("Sam3ImageProcessor")(size={"height": SIDE, "width": SIDE})
    return transformers.Sam3TrackerModel(config), transformers.Sam3TrackerProcessor(images)


BUILDERS = {"sam": tiny_sam, "sam2": tiny_sam2, "sam3": tiny_sam3}


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def saved(request, tmp_path_factory):
    """(kind, folder) of a model with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    model, processor = BUILDERS[request.param]()
    with torch.no_grad():  # as drawn, masks are nearly flat and prompts hardly matter
        for part in (model.prompt_encoder, model.mask_decoder):
            for parameter in part.parameters():
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return request.param, folder


@pytest.fixture(scope="module")
def refiner(saved):
    return SamRefiner.from_pretrained(*saved)


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8))


def rectangle(top, bottom, left, right):
    mask = np.zeros((H, W), bool)
    mask[top:bottom, left:right] = True
    return mask


LEFT, RIGHT = rectangle(4, 30, 2, 20), rectangle(10, 38, 30, 58)


def test_masks_come_back_at_the_images_size_in_order(refiner, image):
    together = refiner(image, [LEFT, RIGHT])
    assert all(mask.shape == (H, W) and mask.dtype == bool and mask.any() for mask in together)
    for mask, alone in zip((LEFT, RIGHT), together, strict=True):
        assert (refiner(image, [mask])[0] == alone).mean() > 0.99


def test_refiner_is_the_class_of_its_kind(saved, refiner):
    assert type(refiner.model).__name__ == SAM_KINDS[saved[0]].model and not refiner.model.training


def prompts_of(refiner, image, masks, squares=None):
    seen = {}
    forward = refiner.model.forward

    def observed(**kwargs):
        seen.update(kwargs)
        return forward(**kwargs)

    refiner.model.forward = observed
    try:
        refiner(image, masks, squares)
    finally:
        del refiner.model.forward
    return seen


def test_prompts_are_box_points_and_logits_in_the_models_own_coordinates(saved, refiner, image):
    seen = prompts_of(refiner, image, [LEFT, RIGHT])
    # SAM scales by the longer side and pads below; its successors stretch to the square.
    scale = np.array([SIDE / W, SIDE / W if saved[0] == "sam" else SIDE / H])
    expected = np.array([[2, 4, 20, 30], [30, 10, 58, 38]]).reshape(2, 2, 2) * scale
    np.testing.assert_allclose(seen["input_boxes"].reshape(2, 2, 2).numpy(), expected, rtol=0.02)
    points = seen["input_points"].numpy()
    assert points.shape == (2, 1, 3, 2) and seen["input_labels"].shape == (2, 1, 3)
    for (low, high), own in zip(expected, points, strict=True):
        assert (own > low).all() and (own < high).all()
    logits = seen["input_masks"].numpy()
    assert logits.shape == (2, 1, 16, 16)
    inside = (logits[0, 0] > 0).nonzero()
    low, high = expected[0] / 4
    for axis, places in zip((1, 0), inside, strict=True):
        assert low[axis] - 1 <= places.min() and places.max() <= high[axis]
    if saved[0] == "sam":  # what is padded is certainly no mask
        assert (logits[:, :, -5:] == -10).all()


def test_logits_are_those_of_the_probabilities(refiner, image):
    flat = np.full((8, 8), 0.75, np.float32)
    seen = prompts_of(refiner, image, [LEFT], [flat])
    assert seen["input_masks"][0, 0, 0, 0].item() == pytest.approx(np.log(3), abs=1e-4)


@torch.inference_mode()
def test_every_prompt_matters(refiner, image):
    logits = []
    for squares in (None, [np.full((8, 8), 0.01, np.float32)]):
        seen = prompts_of(refiner, image, [LEFT], squares)
        logits.append(refiner.model(**seen).pred_masks)
    assert not torch.allclose(logits[0], logits[1])
    seen["input_boxes"] = seen["input_boxes"] + 8
    assert not torch.allclose(refiner.model(**seen).pred_masks, logits[1])


def test_empty_masks_stay_empty_and_need_no_model(image):
    refiner = SamRefiner(None, None)
    empty = np.zeros((H, W), bool)
    assert refiner(image, []) == [] and refiner(image, [empty])[0] is empty


def test_a_mask_that_sam_would_empty_stays_unchanged(refiner, image, monkeypatch):
    monkeypatch.setattr(
        type(refiner.processor),
        "post_process_masks",
        lambda self, masks, *_: [torch.zeros(1, 1, H, W, dtype=torch.bool)],
    )
    assert np.array_equal(refiner(image, [LEFT])[0], LEFT)


def test_masks_of_another_size_are_rejected(image):
    with pytest.raises(ValueError, match=r"masks\[0\] has size \(3, 3\)"):
        SamRefiner(None, None)(image, [np.ones((3, 3), bool)])


def test_unknown_kinds_and_missing_weights_are_rejected(tmp_path):
    with pytest.raises(ValueError, match="refiner: got 'sam9'"):
        SamRefiner.from_pretrained("sam9")
    with pytest.raises(ValueError, match="refiner_model: got .*expected weights of SamModel"):
        SamRefiner.from_pretrained("sam", str(tmp_path))


def test_points_lie_in_the_mask_and_apart():
    mask = rectangle(5, 15, 5, 45)
    points = sample_inner_points(mask).astype(int)
    assert mask[points[:, 1], points[:, 0]].all() and len(np.unique(points, axis=0)) == 3
    assert points[0].tolist()[1] in (9, 10)
    ring = rectangle(0, 40, 0, 40) & ~rectangle(5, 35, 5, 35)
    (x, y), *_ = sample_inner_points(ring).astype(int)
    assert ring[y, x]


def test_single_pixel_has_its_point_three_times():
    assert sample_inner_points(rectangle(7, 8, 9, 10)).tolist() == [[9, 7]] * 3


def test_logits_are_bounded():
    logits = make_prompt_logits(np.array([[0, 1], [0.5, 0.5]], np.float32), (2, 2))
    assert (
        logits.dtype == np.float32
        and logits.min() == pytest.approx(-10)
        and logits.max() == pytest.approx(10, abs=1e-2)
    )


def test_zoom_window_is_the_box_with_a_margin_within_the_image():
    assert choose_zoom_window(rectangle(10, 20, 20, 40)) == (10, 5, 50, 25)
    assert choose_zoom_window(rectangle(0, 10, 50, 60)) == (45, 0, 60, 15)


def test_masks_that_fill_the_image_and_empty_masks_have_no_zoom_window():
    assert choose_zoom_window(rectangle(0, 35, 0, 55)) is None and choose_zoom_window(rectangle(0, 0, 0, 0)) is None


def test_a_zoomed_mask_is_placed_at_its_window():
    mask, window = rectangle(10, 20, 20, 40), (10, 5, 50, 25)
    finer, other = np.zeros((20, 40), bool), np.zeros((20, 40), bool)
    finer[5:14, 10:29] = True
    other[0:4, 0:4] = True
    refined, index = choose_zoomed_mask(mask, window, [other, finer])
    assert index == 1 and np.array_equal(refined, rectangle(10, 19, 20, 39))


def test_a_zoomed_mask_of_another_object_is_rejected():
    mask, window = rectangle(10, 20, 20, 40), (10, 5, 50, 25)
    other = np.zeros((20, 40), bool)
    other[0:4, 0:4] = True
    assert choose_zoomed_mask(mask, window, [other]) is None and choose_zoomed_mask(mask, window, []) is None
    assert choose_zoomed_mask(mask, window, [np.zeros((20, 40), bool)]) is None
