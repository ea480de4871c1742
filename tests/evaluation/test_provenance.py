"""Run cards and the hash of a checkpoint."""

import pytest

from himtok_plugin.evaluation.provenance import RunCard, card_path, checkpoint_hash


def test_a_card_is_saved_beside_its_result_file_and_loaded_from_there(tmp_path):
    result = tmp_path / "out.jsonl"
    assert RunCard.load(result) is None
    card = RunCard(["some/checkpoint"], threshold=0.5, versions={"torch": "2"}, further={"max_new_tokens": 9})
    assert card.save(result) == card_path(result) == tmp_path / "out.jsonl.run.json"
    assert RunCard.load(result) == card


@pytest.mark.parametrize("content", ["[]", "{", '{"unknown_setting": 1}'])
def test_a_damaged_card_is_rejected(tmp_path, content):
    card_path(tmp_path / "out.jsonl").write_text(content)
    with pytest.raises(ValueError, match="out.jsonl.run.json: is not a run card"):
        RunCard.load(tmp_path / "out.jsonl")


def test_the_hash_of_a_checkpoint_depends_on_its_weights_only(tmp_path):
    for name in ("one", "two"):
        folder = tmp_path / name / "mask_tokenizer"
        folder.mkdir(parents=True)
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        (folder / "model.safetensors").write_bytes(b"masks")
        (tmp_path / name / "optimizer.pt").write_bytes(name.encode())
    first, second = (checkpoint_hash([str(tmp_path / name)]) for name in ("one", "two"))
    assert first == second and len(first) == 32
    (tmp_path / "two" / "mask_tokenizer" / "model.safetensors").write_bytes(b"other")
    assert checkpoint_hash([str(tmp_path / "two")]) != first
    assert checkpoint_hash(["OpenGVLab/InternVL3-8B"]) is None
    assert checkpoint_hash([str(tmp_path / "one" / "model.safetensors")])
