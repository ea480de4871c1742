"""objective.py: the terms of the loss, and how unused codes are moved."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import random_squares, tiny_model

from himtok_plugin.hierarchical_loss import mask_bce, mask_dice
from himtok_plugin.mask_tokenizer.objective import StageOneObjective, measure_codebook_usage, spherical_kmeans


def unit(*rows):
    return F.normalize(torch.tensor(rows, dtype=torch.float32), dim=-1)


def ready_objective(**options):
    model = tiny_model(codebook_ready=True).train()
    return model, StageOneObjective(model, **options)


def test_warm_up_passes_latents_and_then_places_the_codebook():
    model = tiny_model().train()
    objective = StageOneObjective(model, continuous_warmup_steps=2)
    before = model.quantize.codebook().detach().clone()
    for step in (0, 1):
        output = objective(random_squares(4, seed=step), step)
        assert output.codes is None and set(output.terms) == {"reconstruction", "prefix"}
        assert not model.config.codebook_ready and torch.equal(model.quantize.codebook(), before)
    output = objective(random_squares(4, seed=2), 2)
    assert model.config.codebook_ready and output.codes.shape == (4, 4)
    assert {"commitment", "codebook"} <= set(output.terms)
    lengths = model.quantize.codebook().norm(dim=-1)
    assert torch.allclose(lengths, lengths[0].expand(12), atol=1e-5)  # directions are what was clustered


def test_a_codebook_that_is_ready_is_neither_warmed_up_nor_moved():
    model, objective = ready_objective(continuous_warmup_steps=100)
    before = model.quantize.codebook().detach().clone()
    assert objective(random_squares(2), 0).codes is not None
    assert torch.equal(model.quantize.codebook(), before)


def test_without_warm_up_the_first_step_places_the_codebook():
    model = tiny_model().train()
    assert StageOneObjective(model)(random_squares(4), 0).codes is not None and model.config.codebook_ready


def test_terms_by_hand():
    model, objective = ready_objective(prefix_loss_weight=0.0)
    squares = random_squares(3)
    output = objective(squares, 0)
    latents = F.normalize(model.encode_to_latents(squares), dim=-1)
    rows = F.normalize(model.quantize.code_vectors(output.codes), dim=-1)
    reconstruction = model.decode(output.codes)
    expected = {
        "reconstruction": mask_bce(reconstruction, squares) + 0.25 * mask_dice(reconstruction, squares),
        "commitment": (latents - rows).square().sum(-1).mean(),
        "codebook": (latents - rows).square().sum(-1).mean(),
    }
    assert output.terms.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(output.terms[name], value, atol=1e-5), name
    total = expected["reconstruction"] + 0.25 * expected["commitment"] + expected["codebook"]
    assert torch.allclose(output.loss, total, atol=1e-5)


def test_the_loss_is_the_weighted_sum_of_its_terms():
    _, objective = ready_objective(entropy_weight=0.1, prefix_loss_weight=0.5, commitment_weight=2.0)
    output = objective(random_squares(3), 0)
    weights = {"reconstruction": 1, "prefix": 0.5, "commitment": 2, "codebook": 1, "entropy": 0.1}
    assert output.terms.keys() == weights.keys()
    assert torch.allclose(output.loss, sum(weights[name] * value for name, value in output.terms.items()))
    assert not any(value.requires_grad for value in output.terms.values())


def test_reconstruction_alone_reaches_encoder_codebook_and_decoder():
    model, objective = ready_objective(commitment_weight=0.0, codebook_weight=0.0, prefix_loss_weight=0.0)
    objective(random_squares(3), 0).loss.backward()
    for parameter in (model.latent_tokens, model.quantize.embedding.weight, model.decoder.mask_token):
        assert parameter.grad.abs().sum() > 0


def test_commitment_moves_latents_only_and_the_codebook_term_moves_code_vectors_only():
    for weights, moved in (((1.0, 0.0), "latents"), ((0.0, 1.0), "code vectors")):
        model, objective = ready_objective()
        _, _, terms = objective._quantize(model.encode_to_latents(random_squares(2)))
        (weights[0] * terms["commitment"] + weights[1] * terms["codebook"]).backward()
        parameters = (model.latent_tokens, model.quantize.embedding.weight)
        touched = [p.grad is not None and bool(p.grad.any()) for p in parameters]
        assert touched == [moved == "latents", moved == "code vectors"]


def test_entropy_is_lowest_for_sure_assignments_that_use_every_code():
    codebook = unit([1, 0], [-1, 0])
    term = StageOneObjective._entropy_term
    spread = float(term(unit([1, 0], [-1, 0])[None], codebook))
    collapsed = float(term(unit([1, 0], [1, 0])[None], codebook))
    unsure = float(term(unit([0, 1], [0, 1])[None], codebook))
    assert spread == pytest.approx(-0.6931, abs=1e-3) and collapsed == pytest.approx(0, abs=1e-3)
    assert unsure == pytest.approx(0, abs=1e-3) and spread < min(collapsed, unsure)


def collapse_codebook(model, row):
    """Give all codes the same vector. The first of equals is nearest, so only code 0 is used."""
    model.quantize.set_code_vectors(row.expand(model.config.codebook_size, -1))


def mean_direction(model, squares):
    return F.normalize(F.normalize(model.encode_to_latents(squares).detach(), dim=-1).flatten(0, 1).mean(0), dim=0)


def test_dead_codes_are_moved_onto_latents():
    model, objective = ready_objective(dead_code_steps=3)
    squares = random_squares(4)
    collapse_codebook(model, mean_direction(model, squares))
    used = [len(objective(squares, step).codes.unique()) for step in range(4)]
    rows = F.normalize(model.quantize.codebook(), dim=-1)
    directions = F.normalize(model.encode_to_latents(squares), dim=-1).flatten(0, 1)
    assert used[-1] > used[0] == 1
    assert ((rows[1:] @ directions.T).amax(-1) > 0.999).all()


def test_codes_in_use_stay_where_they_are():
    model, objective = ready_objective(dead_code_steps=2)
    squares = random_squares(4)
    row = mean_direction(model, squares)
    collapse_codebook(model, row)
    for step in range(2):
        objective(squares, step)
    assert torch.allclose(model.quantize.codebook()[0], row, atol=1e-5)


def revived_steps(parts, steps=9):
    """The optimizer steps before which codes were moved, with the 8 squares of a step in so many batches."""
    model, objective = ready_objective(dead_code_steps=3)
    squares = random_squares(8)
    collapse_codebook(model, mean_direction(model, squares))
    moved, before = [], model.quantize.codebook().detach().clone()
    for step in range(steps):
        for part in squares.chunk(parts):
            objective(part, step)
            after = model.quantize.codebook().detach().clone()
            if not torch.equal(after, before):
                moved.append((step, (after != before).any(-1).nonzero().flatten().tolist()))
            before = after
    return moved


def test_unused_steps_are_optimizer_steps_however_many_batches_they_have():
    torch.manual_seed(0)
    (first, dead), *_ = whole = revived_steps(1)
    assert first == 3 and dead == list(range(1, 12))
    torch.manual_seed(0)
    assert revived_steps(4)[0] == whole[0]


def test_codes_of_all_batches_of_a_step_count_as_used():
    model, objective = ready_objective(dead_code_steps=2)
    squares = random_squares(12)
    for step in range(8):
        used = [objective(part, step).codes for part in squares.chunk(4)]
        used = set(torch.cat(used).flatten().tolist())
        before = model.quantize.codebook().detach().clone()
        objective._finish_step(model.encode_to_latents(squares).float().detach())
        moved = (model.quantize.codebook() != before).any(-1).nonzero().flatten().tolist()
        assert not used & set(moved)


@pytest.mark.parametrize("mode", ["evaluation", "switched off"])
def test_no_code_is_revived_in_evaluation_or_when_switched_off(mode):
    model, objective = ready_objective(dead_code_steps=0 if mode == "switched off" else 1)
    model.train(mode == "switched off")
    before = model.quantize.codebook().detach().clone()
    for step in range(5):
        objective(random_squares(2), step)
    assert torch.equal(model.quantize.codebook(), before)


def test_kmeans_finds_separate_clusters_with_distinct_centres():
    corners = unit([1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0])
    points = F.normalize(corners.repeat_interleave(50, 0) + 0.05 * torch.randn(200, 3), dim=-1)
    centres = spherical_kmeans(points, 16)
    assert torch.allclose(centres.norm(dim=-1), torch.ones(16), atol=1e-5)
    assert ((corners @ centres.T).amax(-1) > 0.98).all()
    assert (centres @ centres.T - 2 * torch.eye(16)).max() < 1 - 1e-7


def test_kmeans_of_fewer_points_than_centres_still_gives_distinct_centres():
    centres = spherical_kmeans(unit([1, 0, 0], [0, 1, 0]), 8)
    assert centres.shape == (8, 3) and len(torch.unique(centres, dim=0)) == 8


def test_usage_by_hand():
    assert measure_codebook_usage(torch.tensor([5, 5, 0, 0])) == {"used_codes": 2, "perplexity": pytest.approx(2.0)}
    assert measure_codebook_usage(torch.tensor([0, 9, 0]))["perplexity"] == pytest.approx(1.0)
    assert measure_codebook_usage(torch.zeros(3, dtype=torch.int64))["used_codes"] == 0


def test_a_few_steps_learn_a_few_masks():
    model = tiny_model().train()
    objective = StageOneObjective(model, continuous_warmup_steps=20, dead_code_steps=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    squares = random_squares(6)
    losses = []
    for step in range(60):
        output = objective(squares, step)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.terms["reconstruction"]))
    assert (
        losses[-1] < 0.7 * losses[0]
        and measure_codebook_usage(torch.bincount(output.codes.flatten()))["used_codes"] > 2
    )
