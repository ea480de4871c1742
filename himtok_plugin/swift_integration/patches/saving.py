"""Saving: what is in a checkpoint beside what ms-swift puts there."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path

from .replacing import add, around


def save_sidecars() -> None:
    """What: every checkpoint of every trainer, and what `swift export` writes, gets the mask tokenizer beside it.
    Why: a callback's `on_save` sees sharded parameters ungathered, `template.save_callback` replaces the whole saving.
    Goes when: there is a hook that is given the gathered weights.
    """
    from swift.trainers.mixin import SwiftMixin

    from himtok_plugin.mask_tokenizer.released_weights import SIDECAR_FOLDER
    from himtok_plugin.swift_integration.model.checkpoint_sidecar import load_mask_tokenizer, save_sidecar

    def runtime_behind(processor):
        return getattr(getattr(processor, "tokenizer", processor), "himtok", None)

    def forget_quantization(arguments: Path) -> None:
        # Of an adapter's training, where ms-swift merges into the base as it was before: by these it would quantise
        # the merged model as well, each time that it loads it.
        if arguments.is_file():
            saved = json.loads(arguments.read_text(encoding="utf-8"))
            saved |= {"quant_method": None, "quant_bits": None}
            arguments.write_text(json.dumps(saved, ensure_ascii=False, indent=2), encoding="utf-8")

    @around(import_module("swift.pipelines.export.merge_lora"), "save_checkpoint")  # the package has its function
    def save_merged(original, model, processor, output_dir, **kwargs):
        original(model, processor, output_dir, **kwargs)
        save_sidecar(model, output_dir, None)
        forget_quantization(Path(output_dir, "args.json"))
        # The same answers as before, so their calibration holds; after training it would not.
        runtime = runtime_behind(processor)
        if runtime is not None and runtime.calibration is not None:
            runtime.calibration.save(os.path.join(output_dir, SIDECAR_FOLDER))

    @around(import_module("swift.pipelines.export.quant"), "save_checkpoint")
    def save_quantized(original, model, processor, output_dir, **kwargs):
        original(model, processor, output_dir, **kwargs)  # without a model: it has saved itself
        runtime = runtime_behind(processor)
        if runtime is not None:
            load_mask_tokenizer(runtime.source).save_pretrained(os.path.join(output_dir, SIDECAR_FOLDER))

    @around(SwiftMixin, "_save")
    def save(original, self, output_dir=None, state_dict=None):
        # A copy, from which transformers deletes what the LMM's files are not to hold.
        original(self, output_dir, None if state_dict is None else dict(state_dict))
        save_sidecar(self.model, output_dir or self.args.output_dir, state_dict)


def save_whole_models() -> None:
    """What: checkpoints of FSDP have the model's own files and the mask tokenizer, beside each process's shards.
    Why: with `SHARDED_STATE_DICT`, which `--fsdp fsdp2` means, there are shards only, which nothing but a resumed run
    can read.
    Goes when: ms-swift writes a model (its issue 8198).
    """
    from swift.trainers.mixin import SwiftMixin

    from himtok_plugin.swift_integration.model.attached_mask_tokenizer import find_attached_mask_tokenizer
    from himtok_plugin.swift_integration.model.sharding import gather_fsdp_weights

    @add(SwiftMixin, "save_model")
    def save_model(self, output_dir=None, _internal_call=False):
        super(SwiftMixin, self).save_model(output_dir, _internal_call)  # transformers' trainer
        if not self.is_fsdp_enabled or find_attached_mask_tokenizer(self.model) is None:
            return
        if "FULL_STATE_DICT" not in str(self.accelerator.state.fsdp_plugin.state_dict_type):
            weights = gather_fsdp_weights(self.model)  # by all processes
            if self.args.should_save:
                self._save(output_dir or self.args.output_dir, weights)
