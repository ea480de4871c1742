"""Training that is not supervised fine-tuning: no trainer of ours encodes masks there, so every row does."""

import torch
from runs import COMMON, LMM, flags, logged, write_rows

from himtok_plugin import MaskTokenizer
from himtok_plugin.mask_text import codes_to_text
from himtok_plugin.masks import load_mask, to_square


def test_preference_rows_train_on_real_codes(world, tmp_path, monkeypatch):
    from swift.pipelines import rlhf_main
    from swift.rlhf_trainers import DPOTrainer

    row = world.segment(world.left)
    rows = [{**row, "rejected_response": "There is no such shape."}] * 4
    seen = []
    collate = DPOTrainer.get_batch_loss_metrics

    def spy(self, model, batch, *args, **kwargs):
        seen.append({key: value.clone() for key, value in batch.items() if isinstance(value, torch.Tensor)})
        self.himtok_texts = self.template.tokenizer.batch_decode(batch["input_ids"])
        seen[-1]["texts"] = self.himtok_texts
        return collate(self, model, batch, *args, **kwargs)

    monkeypatch.setattr(DPOTrainer, "get_batch_loss_metrics", spy)
    options = {
        **COMMON,
        "per_device_train_batch_size": 2,
        "max_steps": 1,
        **LMM,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    result = rlhf_main(
        flags(
            **options,
            rlhf_type="dpo",
            model=world.lmm,
            mask_tokenizer=world.mask_tokenizer,
            dataset=write_rows(tmp_path / "rows.jsonl", rows),
            output_dir=tmp_path / "out",
        )
    )
    assert logged(result, "loss")
    tokenizer = MaskTokenizer.from_pretrained(tmp_path / "out" / "checkpoint-1" / "mask_tokenizer")
    square = torch.from_numpy(to_square(load_mask(world.left), tokenizer.config.image_size))[None]
    text = codes_to_text(tokenizer.encode(square)[0].tolist())
    assert sum(text in answer for answer in seen[0]["texts"]) == 2
    assert not [key for key in seen[0] if key.startswith("himtok_")]
