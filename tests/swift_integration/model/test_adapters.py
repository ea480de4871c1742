"""LoRA and its variants: adapters and mask token embeddings are trained, saved, loaded and merged."""

import json

import numpy as np
import pytest
import torch
from runs import STAGE_TWO, export, infer, logged, read_rows, untie, write_rows
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from himtok_plugin import MaskTokenizer, Segmenter
from himtok_plugin.adapters.split import split_adapter
from himtok_plugin.lmm.tiny_internvl import TinyLmmSize, build_tiny_internvl
from himtok_plugin.lmm.vocabulary import MaskVocabulary
from himtok_plugin.mask_text import MASK_START
from himtok_plugin.prediction.calibration import Calibration

CODES = 12  # of the tests' mask tokenizer
STEPS = 4
LORA = {
    "tuner_type": "lora",
    "lora_rank": 4,
    "target_modules": "all-linear",
    "learning_rate": 2e-2,
    "max_steps": STEPS,
    "save_strategy": "steps",
    "save_steps": STEPS,
}


@pytest.fixture(scope="module")
def bases(world, tmp_path_factory):
    return {"tied": world.lmm, "untied": untie(world.lmm, tmp_path_factory.mktemp("untied"))}


@pytest.fixture
def lora(train, world, tmp_path):
    """A few steps of stage 2 with LoRA; returns the adapter's checkpoint."""

    def run(name="lora", rows=None, **options):
        rows = rows or read_rows(world.scenes)
        result = train(rows, output_dir=tmp_path / name, **{**LORA, **STAGE_TWO, **options})
        assert all(np.isfinite(logged(result, "loss")))
        return tmp_path / name / f"checkpoint-{STEPS}"

    return run


@pytest.fixture
def answers(world, tmp_path):
    """Greedy answers that start with an open mask; untrained models open none by themselves."""
    rows = write_rows(tmp_path / "asked.jsonl", [world.segment(m) for m in (world.left, world.right)])

    def run(name, **options):
        options = {"max_new_tokens": 12, "response_prefix": MASK_START, "torch_dtype": "float32", **options}
        return infer(rows, tmp_path / f"{name}.jsonl", **options)

    return run


def tensors(checkpoint):
    return load_file(checkpoint / "adapter_model.safetensors")


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_adapter_has_lora_and_mask_token_embeddings_and_nothing_else(lora, bases, kind):
    checkpoint = lora(model=bases[kind])
    saved = tensors(checkpoint)
    rows = {name: value for name, value in saved.items() if "trainable_tokens_delta" in name}
    assert [tuple(value.shape) for value in rows.values()] == [(CODES + 2, 32)] * (1 if kind == "tied" else 2)
    assert all("lora_" in name for name in saved if name not in rows)
    assert {value.dtype for value in saved.values()} == {torch.float32}
    assert MaskTokenizer.from_pretrained(checkpoint / "mask_tokenizer").config.codebook_size == CODES


def test_size_of_the_adapter_is_logged(lora, monkeypatch):
    from himtok_plugin.swift_integration.model import checkpoint_sidecar

    logged = []
    monkeypatch.setattr(checkpoint_sidecar.logger, "info", lambda message, *_, **__: logged.append(str(message)))
    checkpoint = lora()
    count = sum(value.numel() for value in tensors(checkpoint).values())
    assert any(f"adapter of {count:,} parameters" in line for line in logged)


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_adapter_infers_and_merges_into_a_vanilla_checkpoint_with_the_same_answers(
    lora, bases, answers, tmp_path, kind
):
    checkpoint = lora(model=bases[kind])
    calibration = Calibration((0.0, 1.0), (0.1, 0.9))
    calibration.save(checkpoint / "mask_tokenizer")
    adapted = answers("adapted", adapters=checkpoint)
    assert all(row["masks"] and row["masks"][0]["complete"] for row in adapted), [r["response"] for r in adapted]
    segmenter = Segmenter.from_pretrained(
        checkpoint, max_new_tokens=12, response_prefix=MASK_START, torch_dtype="float32"
    )
    for row in adapted:
        result = segmenter(row["images"][0]["path"], "it")
        assert result.text == row["response"] and result.codes == [mask["codes"] for mask in row["masks"]]
    export(adapters=checkpoint, merge_lora=True, output_dir=tmp_path / "merged", torch_dtype="float32")
    merged, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(report.values()), report
    assert Calibration.load(tmp_path / "merged" / "mask_tokenizer") == calibration
    for one, other in zip(adapted, answers("merged", model=tmp_path / "merged"), strict=True):
        assert one["response"] == other["response"]
        # The scores' last digits move, since a merged weight is a sum rounded once.
        assert [mask["counts"] for mask in one["masks"]] == [mask["counts"] for mask in other["masks"]]
    tied = merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert tied == (kind == "tied")
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "merged").tokenizer
    rows = MaskVocabulary.of(tokenizer, CODES).ids()
    for name, value in tensors(checkpoint).items():
        if "trainable_tokens_delta" in name:
            layer = merged.get_input_embeddings() if "embed_tokens" in name else merged.get_output_embeddings()
            assert torch.equal(layer.weight[rows], value)


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_split_adapter_answers_like_the_adapter(lora, bases, answers, tmp_path, kind):
    checkpoint = lora(model=bases[kind])
    split_adapter(checkpoint, tmp_path / "split")
    base, plain = tmp_path / "split" / "base", tmp_path / "split" / "adapter"
    assert not any("trainable_tokens_delta" in name for name in tensors(plain))
    adapted = answers("adapted", adapters=checkpoint)
    for name, options in {"named": {"adapters": plain}, "given": {"model": base, "adapters": plain}}.items():
        assert [row["response"] for row in answers(name, **options)] == [row["response"] for row in adapted]
    continued = lora("continued", model=base, adapters=plain, mask_tokenizer=None)
    assert not any("trainable_tokens_delta" in name for name in tensors(continued))


def test_mask_token_embeddings_change_and_others_stay(lora, bases, tmp_path, answers):
    checkpoint = lora(model=bases["tied"])
    export(adapters=checkpoint, merge_lora=True, output_dir=tmp_path / "merged", torch_dtype="float32")
    before = AutoModelForImageTextToText.from_pretrained(bases["tied"]).get_input_embeddings().weight
    after = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").get_input_embeddings().weight
    assert torch.equal(before, after[: len(before)])


@pytest.mark.parametrize("options", [{"use_dora": True}, {"use_rslora": True}, {"tuner_type": "lora_llm"}], ids=str)
def test_variants_of_lora_train_infer_and_save_the_embeddings(lora, bases, answers, options):
    checkpoint = lora(model=bases["untied"], **options)
    assert sum("trainable_tokens_delta" in name for name in tensors(checkpoint)) == 2
    assert all(row["masks"] for row in answers("adapted", adapters=checkpoint))


def test_detokenizer_is_trained_only_if_requested(lora, world, bases):
    def decoder(folder):
        return MaskTokenizer.from_pretrained(folder).decoder.state_dict()

    before = decoder(world.mask_tokenizer)
    kept, trained = lora("kept", train_detokenizer=False), lora("trained")
    assert all(torch.equal(value, before[name]) for name, value in decoder(kept).items())
    assert not all(torch.equal(value, before[name]) for name, value in decoder(trained).items())


def test_adapter_training_continues_from_an_adapter(lora, train, world, tmp_path):
    first = lora("first")
    second = lora("second", adapters=first, mask_tokenizer=None)
    assert tensors(first).keys() == tensors(second).keys()
    rows = [name for name in tensors(first) if "trainable_tokens_delta" in name]
    assert rows and not torch.equal(tensors(first)[rows[0]], tensors(second)[rows[0]])


def test_adapter_on_a_stage_two_checkpoint_and_on_a_merged_one(lora, stage_two, answers, tmp_path):
    on_stage_two = lora("stage_two", model=stage_two[1], mask_tokenizer=None, mask_loss_weight=0)
    export(adapters=on_stage_two, merge_lora=True, output_dir=tmp_path / "merged", torch_dtype="float32")
    on_merged = lora("merged_again", model=tmp_path / "merged", mask_tokenizer=None)
    assert all(row["masks"] for row in answers("adapted", adapters=on_merged))


def test_resumed_run_continues_the_mask_token_embeddings(train, world, tmp_path):
    options = {"dataset": world.scenes, **LORA, **STAGE_TWO, "save_steps": 2}
    train(**options, output_dir=tmp_path / "whole")
    train(**{**options, "max_steps": 2}, output_dir=tmp_path / "half")
    train(**options, resume_from_checkpoint=tmp_path / "half" / "checkpoint-2", output_dir=tmp_path / "rest")
    whole, rest = (tensors(tmp_path / name / f"checkpoint-{STEPS}") for name in ("whole", "rest"))
    for name, value in whole.items():
        assert torch.equal(value, rest[name]), name


def test_completely_trained_embeddings_stay_unchanged(lora):
    checkpoint = lora(modules_to_save=["embed_tokens"])
    assert not any("trainable_tokens_delta" in name for name in tensors(checkpoint))
    assert any("embed_tokens" in name for name in tensors(checkpoint))


def test_tuner_that_cannot_train_single_embeddings_is_refused_for_new_ones(train, world):
    with pytest.raises(ValueError, match="cannot train the new mask token embeddings"):
        train(read_rows(world.scenes), tuner_type="fourierft", fourier_n_frequency=4, **STAGE_TWO)


def test_adapter_of_another_base_is_refused(lora, train, world, tmp_path, answers):
    checkpoint = lora()
    texts = ["some other words for another vocabulary", "more of them"]
    other = build_tiny_internvl(tmp_path / "other", texts, "nano")
    with pytest.raises(ValueError, match=r"got 14 token embeddings \d+ to \d+ .* belongs to another base"):
        answers("other", model=other, adapters=checkpoint)
    wide = TinyLmmSize(hidden=48, layers=2, heads=2, vision_hidden=32, vision_layers=1, vision_heads=2)
    scenes = [m["content"] for row in read_rows(world.scenes) for m in row["messages"]]
    wider = build_tiny_internvl(tmp_path / "wide", scenes, wide)
    tokenizer, original = (AutoProcessor.from_pretrained(p).tokenizer for p in (wider, world.lmm))
    original.save_pretrained(wider)
    with pytest.raises(ValueError, match="have width 32, expected 48|got 14 token embeddings"):
        answers("wide", model=wider, adapters=checkpoint)


@pytest.fixture
def ordinary(world, tmp_path):
    """A LoRA checkpoint made without this plugin; it has a complete trained norm layer."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lmm = AutoModelForImageTextToText.from_pretrained(world.lmm)
    config = LoraConfig(
        r=4, target_modules=r".*language_model.*q_proj", modules_to_save=["language_model.norm"], task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(lmm, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            parameter.data.normal_(1, 0.1)
    adapted.save_pretrained(tmp_path / "ordinary")
    return tmp_path / "ordinary"


def test_training_from_an_ordinary_adapter_adds_mask_token_embeddings(lora, ordinary, world, answers, tmp_path):
    checkpoint = lora(adapters=ordinary, model=world.lmm, learning_rate=1e-5)
    before, after = load_file(ordinary / "adapter_model.safetensors"), tensors(checkpoint)
    (rows,) = (value for name, value in after.items() if "trainable_tokens_delta" in name)
    assert tuple(rows.shape) == (CODES + 2, 32) and len(after) == len(before) + 1
    for name, value in before.items():
        assert torch.allclose(after[name], value, atol=1e-3), name
    export(adapters=checkpoint, merge_lora=True, output_dir=tmp_path / "merged", torch_dtype="float32")
    adapted, merged = answers("adapted", adapters=checkpoint), answers("merged", model=tmp_path / "merged")
    assert all(row["masks"] for row in adapted)
    assert [row["response"] for row in adapted] == [row["response"] for row in merged]


def test_run_is_not_resumed_from_an_ordinary_adapter(lora, ordinary, world):
    (ordinary / "trainer_state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"resume_from_checkpoint: .* and '.*/ordinary' have no mask token embeddings"):
        lora(model=world.lmm, resume_from_checkpoint=ordinary)


def test_inference_with_untrained_mask_token_embeddings_is_refused(ordinary, world, answers):
    options = {"model": world.lmm, "mask_tokenizer": world.mask_tokenizer}
    with pytest.raises(
        ValueError, match=r"model: '.*/lmm' has no mask token embeddings, .* trained with --plugin himtok"
    ):
        answers("plain", **options)
    with pytest.raises(ValueError, match=r"model: '.*/lmm' and '.*/ordinary' have no mask token embeddings"):
        answers("ordinary", **options, adapters=ordinary)


def test_lora_on_new_embeddings_is_refused(lora):
    with pytest.raises(ValueError, match="target_modules: got embeddings, but the adapter would not save the new"):
        lora(target_modules=["all-linear", "all-embedding"])


def test_new_embeddings_that_stay_frozen_are_reported(train, monkeypatch):
    from himtok_plugin.swift_integration.patches import training

    logged = []
    monkeypatch.setattr(training.logger, "warning", lambda message, *_, **__: logged.append(message))
    train(freeze_llm=True, **STAGE_TWO)
    assert any("are new, frozen and close together" in line for line in logged)
    for options in ({}, {"freeze_llm": True, "mask_rows_scale": 1}):
        logged.clear()
        train(**options, **STAGE_TWO)
        assert not any("frozen" in line for line in logged)


def test_adapter_without_its_mask_tokenizer_is_refused(lora, answers):
    import shutil

    checkpoint = lora()
    shutil.rmtree(checkpoint / "mask_tokenizer")
    args = json.loads((checkpoint / "args.json").read_text())
    (checkpoint / "args.json").write_text(json.dumps({**args, "mask_tokenizer": None}))
    with pytest.raises(ValueError, match="mask_tokenizer: got none"):
        answers("none", adapters=checkpoint)


def test_resuming_with_another_mask_tokenizer_is_refused(train, world, tmp_path):
    from tiny_models import tiny_model

    train(**{**LORA, **STAGE_TWO}, dataset=world.scenes, output_dir=tmp_path / "out")
    other = tiny_model(seed=7)
    other.config.codebook_ready = True
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="got a mask tokenizer with other codes"):
        train(
            **{**LORA, **STAGE_TWO, "max_steps": 6},
            dataset=world.scenes,
            mask_tokenizer=tmp_path / "other",
            resume_from_checkpoint=tmp_path / "out" / f"checkpoint-{STEPS}",
            output_dir=tmp_path / "again",
        )


FOUR_BITS = {"quant_method": "bnb", "quant_bits": 4, "torch_dtype": "bfloat16", "bf16": True, "use_cpu": True}


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_four_bit_base_trains_lora_embeddings_and_a_full_precision_detokenizer(lora, bases, world, kind, monkeypatch):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from himtok_plugin.swift_integration.training.trainer import MaskTrainer

    models = []
    train = MaskTrainer.train
    monkeypatch.setattr(MaskTrainer, "train", lambda self, *args: models.append(self.model) or train(self, *args))
    checkpoint = lora(model=bases[kind], **FOUR_BITS)
    quantized = {n for n, m in models[0].named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}
    assert any("language_model" in name for name in quantized)
    assert not any("mask_tokenizer" in name for name in quantized)
    assert {p.dtype for n, p in models[0].named_parameters() if "mask_tokenizer" in n} == {torch.float32}
    rows = {name: value for name, value in tensors(checkpoint).items() if "trainable_tokens_delta" in name}
    assert [tuple(value.shape) for value in rows.values()] == [(CODES + 2, 32)] * (1 if kind == "tied" else 2)
    # Rows were drawn narrowly around the old ones' mean: what is far from each other has learned.
    assert all(value.dtype == torch.float32 and value.std(0).max() > 1e-2 for value in rows.values())
    before, after = (
        MaskTokenizer.from_pretrained(folder).state_dict() for folder in (world.mask_tokenizer, checkpoint)
    )
    moved = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"decoder", "pixel_decoder"} and {value.dtype for value in after.values()} == {torch.float32}


def test_four_bits_without_bitsandbytes_say_what_to_install(lora, monkeypatch):
    import transformers.quantizers.quantizer_bnb_4bit as quantizer

    monkeypatch.setattr(quantizer, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(ImportError, match="requires bitsandbytes: `pip install -U bitsandbytes"):
        lora(**FOUR_BITS)


def test_single_embeddings_of_a_sharded_matrix_are_refused(lora, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="fsdp with LoRA: PEFT cannot train single embeddings of a sharded matrix"):
        lora()


def test_safetensors_of_an_adapter_have_no_mask_tokenizer(lora):
    with safe_open(lora() / "adapter_model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "mask_tokenizer" in name]
