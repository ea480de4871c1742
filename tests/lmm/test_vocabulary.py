"""vocabulary.py: mask tokens are added, found, or rejected; their new token embeddings are initialized."""

import pytest
import torch
import transformers
from transformers import AddedToken, Gemma3nConfig, Qwen2Config, Qwen2ForCausalLM

from himtok_plugin.lmm.tiny_internvl import train_tokenizer
from himtok_plugin.lmm.vocabulary import (
    MaskVocabulary,
    check_ids_are_text,
    extend_embeddings,
    extend_tokenizer,
)
from himtok_plugin.mask_text import codes_to_text, mask_tokens

CODES = 12


@pytest.fixture
def tokenizer():
    return train_tokenizer(["The mask appears at the large red circle."], 300)


def language_model(vocabulary: int, tied: bool) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
    )
    with torch.no_grad():
        for weight in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            weight.add_(torch.arange(16) / 8)  # a mean that is not zero, and rows that differ from it
    return model


def test_added_tokens_are_one_id_each_and_in_order(tokenizer):
    before = len(tokenizer)
    added = extend_tokenizer(tokenizer, CODES)
    assert added == list(range(before, before + CODES + 2))
    vocabulary = MaskVocabulary.of(tokenizer, CODES)
    assert (vocabulary.start_id, vocabulary.end_id) == (before, before + 1)
    ids = tokenizer(codes_to_text([7, 0, 11]), add_special_tokens=False).input_ids
    assert ids == [vocabulary.start_id, *(vocabulary.first_code_id + c for c in (7, 0, 11)), vocabulary.end_id]


def test_columns_of_the_codes_are_those_of_their_ids(tokenizer):
    extend_tokenizer(tokenizer, CODES)
    columns = MaskVocabulary.of(tokenizer, CODES).code_ids
    assert tokenizer.convert_ids_to_tokens(range(columns.start, columns.stop)) == mask_tokens(CODES)[2:]


def test_mask_text_survives_decoding_without_special_tokens(tokenizer):
    extend_tokenizer(tokenizer, CODES)
    text = "The mask appears at " + codes_to_text([3, 3, 10]) + "."
    ids = tokenizer(text + tokenizer.eos_token, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_mask_tokens_survive_saving_and_loading(tokenizer, tmp_path):
    extend_tokenizer(tokenizer, CODES)
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert MaskVocabulary.of(loaded, CODES) == MaskVocabulary.of(tokenizer, CODES)
    assert not set(mask_tokens(CODES)) & set(loaded.all_special_tokens)
    assert extend_tokenizer(loaded, CODES) == []


def test_extending_twice_adds_nothing(tokenizer):
    extend_tokenizer(tokenizer, CODES)
    length = len(tokenizer)
    assert extend_tokenizer(tokenizer, CODES) == []
    assert len(tokenizer) == length


def test_partial_presence_is_refused(tokenizer):
    tokenizer.add_tokens(mask_tokens(CODES)[:5])
    with pytest.raises(ValueError, match=r"lacks 9 of the 14 mask tokens, first <\|mt_3\|>"):
        extend_tokenizer(tokenizer, CODES)


@pytest.mark.parametrize("present", [CODES - 1, CODES + 1])
def test_another_code_count_is_refused(tokenizer, present):
    extend_tokenizer(tokenizer, present)
    with pytest.raises(ValueError, match="text tokenizer (lacks 1 of the 14|has 13 mask codes)"):
        extend_tokenizer(tokenizer, CODES)


def test_disordered_ids_are_refused(tokenizer):
    tokens = mask_tokens(CODES)
    tokens[4], tokens[5] = tokens[5], tokens[4]
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
    with pytest.raises(ValueError, match=r"<\|mt_2\|> at id .* the codes must be in order"):
        MaskVocabulary.of(tokenizer, CODES)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare", [0, 100])
def test_new_token_embeddings_are_near_the_mean_of_the_old_ones(tokenizer, tied, spare):
    old = len(tokenizer)
    model = language_model(old + spare, tied)
    matrices = [model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()]
    added = extend_tokenizer(tokenizer, CODES)
    extend_embeddings(model, added, len(tokenizer))
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (inputs is outputs) is tied
    for before, after in zip(matrices, (inputs, outputs), strict=True):
        assert torch.equal(after[:old], before[:old])
        mean, std = before[:old].mean(0), before[:old].std(0)
        distance = (after[added] - mean) / std
        assert distance.abs().max() < 0.5
        assert len(after[added].unique(dim=0)) == len(added)


def test_the_distance_of_new_token_embeddings_from_the_mean_can_be_set(tokenizer):
    old = len(tokenizer)
    model = language_model(old, tied=True)
    added = extend_tokenizer(tokenizer, CODES)
    extend_embeddings(model, added, len(tokenizer), features=torch.randn(CODES, 4), noise_scale=2.0)
    weight = model.get_input_embeddings().weight
    distance = (weight[added] - weight[:old].mean(0)) / weight[:old].std(0)
    assert distance.std().item() == pytest.approx(2.0, rel=0.3)


def test_matrices_with_room_to_spare_keep_their_size(tokenizer):
    model = language_model(len(tokenizer) + 100, tied=False)
    rows = model.get_input_embeddings().weight.shape[0]
    extend_embeddings(model, extend_tokenizer(tokenizer, CODES), len(tokenizer))
    assert model.get_input_embeddings().weight.shape[0] == rows


def test_matrices_grow_to_a_multiple_of_64(tokenizer):
    model = language_model(len(tokenizer), tied=False)
    extend_embeddings(model, extend_tokenizer(tokenizer, CODES), len(tokenizer))
    rows = model.get_input_embeddings().weight.shape[0]
    assert rows % 64 == 0 and len(tokenizer) <= rows < len(tokenizer) + 64
    assert model.config.vocab_size == model.get_output_embeddings().weight.shape[0] == rows


def test_matrices_grow_to_the_highest_id_where_a_tokenizer_leaves_ids_out():
    model = language_model(100, tied=False)
    assert extend_embeddings(model, list(range(130, 144)), vocabulary_size=114) == 192
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert len(layer.weight) == 192 and len(layer.weight[130:144].unique(dim=0)) == 14


def test_input_embeddings_beyond_the_vocabulary_stay_beyond_it():
    """Llama 3.2 Vision: it has 8 more input embeddings than `vocab_size`."""
    model = language_model(100, tied=False)
    old = torch.nn.Embedding(108, 16)
    model.set_input_embeddings(old)
    assert extend_embeddings(model, list(range(101, 115)), vocabulary_size=115) == model.config.vocab_size == 128
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (len(inputs), len(outputs)) == (136, 128)
    assert torch.equal(inputs[:101], old.weight[:101])


def test_embeddings_that_every_layer_adds_are_initialized_without_noise():
    """Gemma 4: adapters do not save them, so random ones would be different at inference."""
    model = language_model(128, tied=False)
    per_layer = model.model.embed_tokens_per_layer = torch.nn.Embedding(128, 4)
    old = per_layer.weight.detach().clone()
    extend_embeddings(model, list(range(100, 114)), vocabulary_size=114)
    torch.testing.assert_close(per_layer.weight[100:114], old[:100].mean(0).expand(14, -1))
    assert torch.equal(per_layer.weight[:100], old[:100])


def test_ids_that_a_model_embeds_as_something_else_are_refused():
    with pytest.raises(ValueError, match="'gemma3n': mask tokens got ids 262145 to 262158, but ids from 262"):
        check_ids_are_text(Gemma3nConfig(), list(range(262145, 262159)))


@pytest.mark.skipif(not hasattr(transformers, "Gemma4Config"), reason="this transformers has no Gemma 4")
def test_ids_behind_the_vocabulary_of_gemma_4_are_text():
    check_ids_are_text(transformers.Gemma4Config(), list(range(262145, 262159)))
