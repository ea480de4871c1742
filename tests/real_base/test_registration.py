"""examples/09_real_base: the model's registration with ms-swift."""

import json
import subprocess
import sys

import pytest
from tiny_models import tiny_model
from tiny_parts import FOLDER, coco_folder, load_weights

TEMPLATE_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[2])
import register_fast_vlm
from swift import get_processor, get_template
from PIL import Image

processor = get_processor(sys.argv[1])
template = get_template(processor)
image = Image.new("RGB", (30, 50))
messages = [{"role": "user", "content": "<image>Hi"}, {"role": "assistant", "content": "Yes."}]
row = {"messages": messages, "images": [image]}
template.set_mode("train")
encoded = template.encode(row)
labels = [id for id in encoded["labels"] if id != -100]
print(repr(processor.decode(labels)))
template.set_mode("transformers")
ids = template.encode({**row, "messages": messages[:1]})["input_ids"]
message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}
text = processor.apply_chat_template([message], add_generation_prompt=True)
print(ids == processor(images=image, text=text)["input_ids"][0])
"""


def run(*command):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_ms_swift_writes_the_same_tokens_as_the_processor_and_labels_the_answer(base):
    printed = run("-c", TEMPLATE_PROGRAM, base, FOLDER).splitlines()
    assert printed[-2:] == [r"'Yes.<|im_end|>\n'", "True"]


@pytest.mark.slow
def test_the_registered_model_is_trained_on_masks_and_segments(base, modules, tmp_path):
    _, photographs, questions = modules
    coco_folder(photographs, tmp_path / "coco")
    tiny_model(codebook_ready=True).save_pretrained(tmp_path / "mask_tokenizer")
    rows = tmp_path / "rows.jsonl"
    questions.prepare(tmp_path / "coco", rows, ("segment_class",), 0)
    plugins = ("--plugin", "himtok", "--external_plugins", FOLDER / "register_fast_vlm.py")
    statistics = {name: value for name, value in load_weights(base).items() if "running" in name}
    frozen = "model.vision_tower.timm_model.conv_stem"
    run(
        *("-m", "swift.cli.main", "sft", *plugins, "--model", base, "--mask_tokenizer", tmp_path / "mask_tokenizer"),
        *("--dataset", rows, "--output_dir", tmp_path / "out", "--add_version", "false", "--tuner_type", "full"),
        *("--torch_dtype", "float32", "--use_cpu", "true", "--bf16", "false", "--fp16", "false", "--max_steps", 2),
        *("--freeze_vit", "false", "--freeze_aligner", "false", "--freeze_parameters", frozen, "--vit_lr", "1e-3"),
        *("--aligner_lr", "1e-3", "--learning_rate", "1e-3", "--report_to", "none", "--split_dataset_ratio", 0),
    )
    before, after = load_weights(base), load_weights(tmp_path / "out" / "checkpoint-2")
    changed = {
        name for name in before if before[name].shape != after[name].shape or not before[name].equal(after[name])
    }
    assert not changed & (statistics.keys() | {f"{frozen}.weight"})
    assert "model.multi_modal_projector.linear_1.weight" in changed
    assert any(name.startswith("model.vision_tower.timm_model.blocks") for name in changed)
    out = tmp_path / "out.jsonl"
    run(
        *("-m", "swift.cli.main", "infer", *plugins, "--model", tmp_path / "out" / "checkpoint-2"),
        *("--val_dataset", rows, "--result_path", out, "--max_new_tokens", 24, "--stream", "false"),
    )
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(results) == 3 and all("masks" in result for result in results)
