"""An adapter with trained token embeddings under vLLM: merged, or split into a base model and a plain LoRA.

Both give the default engine's answers with the adapter itself, which vLLM does not load.
"""

import pytest
import torch
from chat import ask_all
from runs import export, flags, infer, read_rows, run_swift, sft, write_rows
from safetensors.torch import load_file
from vllm_servers import MAX_NEW_TOKENS, SERVED_NAME, SWIFT_ENGINE, deployed_on_vllm, served_by_vllm

from himtok_plugin.adapters.split import split_adapter
from himtok_plugin.adapters.trained_embeddings import find_tensor
from himtok_plugin.checkpoints.adapter_files import AdapterFiles
from himtok_plugin.data.generated.scenes import generate_scenes, scene_row
from himtok_plugin.mask_text import answer_regex
from himtok_plugin.mask_tokenizer import MaskTokenizerConfig

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

STEPS, RANK = 12, 8
TRAINING_SEED = 77  # of other scenes than those that are asked about


@pytest.fixture(scope="module")
def adapter(checkpoint, tmp_path_factory):
    """An adapter whose LoRA weights and token embeddings change many answers."""
    root = tmp_path_factory.mktemp("adapter")
    rows = []
    for i, scene in enumerate(generate_scenes(64, TRAINING_SEED)):
        scene.image.save(root / f"{i}.png")
        rows.append(scene_row(scene, str(root / f"{i}.png")))
    sft(
        model=checkpoint,
        tuner_type="lora",
        lora_rank=RANK,
        target_modules="all-linear",
        dataset=write_rows(root / "rows.jsonl", rows),
        output_dir=root / "out",
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=STEPS,
        per_device_train_batch_size=8,
        learning_rate=5e-4,
        mask_rows_lr=3e-3,
    )
    return root / "out" / f"checkpoint-{STEPS}"


@pytest.fixture(scope="module")
def expected(adapter, scene_rows, default_answers, tmp_path_factory):
    """Texts of the default engine with the adapter."""
    result = tmp_path_factory.mktemp("expected") / "out.jsonl"
    options = {"adapters": adapter, "torch_dtype": "float32", "max_batch_size": 16, "max_new_tokens": MAX_NEW_TOKENS}
    texts = [row["response"] for row in infer(scene_rows, result, **options)]
    without_adapter = count_equal(texts, [row["response"] for row in default_answers])
    print(f"without the adapter, {without_adapter} of {len(texts)} texts are the same")
    assert without_adapter < len(texts) * 0.6
    return texts


@pytest.fixture(scope="module")
def split(adapter, tmp_path_factory):
    out = tmp_path_factory.mktemp("split") / "out"
    split_adapter(adapter, out)
    return out


def count_equal(texts, others):
    return sum(one == other for one, other in zip(texts, others, strict=True))


@pytest.fixture(scope="module")
def ask_texts(checkpoint, scene_rows):
    """Ask a server about the scenes, with the regular expression that the default engine's constraint stands for."""
    config = MaskTokenizerConfig.from_pretrained(checkpoint / "mask_tokenizer")
    regex = answer_regex(config.codebook_size, config.num_mask_tokens)
    options = {"temperature": 0, "max_tokens": MAX_NEW_TOKENS, "extra_body": {"structured_outputs": {"regex": regex}}}

    def ask(address, **further):
        answers = ask_all(address, read_rows(scene_rows), **options, **further)
        return [answer.choices[0].message.content for answer in answers]

    return ask


def test_merged_adapter_is_served_with_the_same_answers(adapter, expected, ask_texts, tmp_path):
    export(adapters=adapter, merge_lora=True, output_dir=tmp_path / "merged", torch_dtype="float32")
    with served_by_vllm(tmp_path, tmp_path / "merged") as address:
        assert ask_texts(address) == expected


def test_split_adapter_is_served_with_the_same_answers(split, expected, ask_texts, tmp_path):
    lora = ("--enable-lora", "--max-lora-rank", RANK, "--lora-modules", f"{SERVED_NAME}={split / 'adapter'}")
    with served_by_vllm(tmp_path, split / "base", *lora, "--served-model-name", "base") as address:
        assert ask_texts(address) == expected
        without_lora = count_equal(ask_texts(address, model="base"), expected)
        print(f"without the LoRA, {without_lora} of {len(expected)} texts are the same")
        assert without_lora < len(expected) * 0.8


def test_swift_infer_takes_the_split_adapter(split, expected, scene_rows, tmp_path):
    options = {"adapters": split / "adapter", "val_dataset": scene_rows, "result_path": tmp_path / "out.jsonl"}
    options |= {"temperature": 0, "max_new_tokens": MAX_NEW_TOKENS}
    done = run_swift("infer", *flags(plugin="himtok", **options, **SWIFT_ENGINE), cwd=tmp_path, timeout=1500)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert [row["response"] for row in read_rows(tmp_path / "out.jsonl")] == expected


def test_swift_deploy_serves_the_split_adapter_by_name(split, expected, scene_rows, tmp_path):
    with deployed_on_vllm(
        tmp_path, model=split / "base", adapters=f"tuned={split / 'adapter'}", max_new_tokens=MAX_NEW_TOKENS
    ) as address:
        answers = ask_all(address, read_rows(scene_rows), model="tuned", temperature=0)
    assert [answer.choices[0].message.content for answer in answers] == expected
    assert all(mask["score"] is not None for answer in answers for mask in answer.choices[0].message.segments)


def test_token_embeddings_of_the_adapter_have_moved(adapter, checkpoint):
    files = AdapterFiles.open(adapter)
    ((layer, key),) = files.list_trained_embeddings().items()
    before, after = load_file(checkpoint / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    moved = after[key] - before[find_tensor(f"{layer}.weight", before)][files.get_token_ids(layer)]
    assert torch.quantile(moved.abs().amax(1), 0.1) > 1e-3
