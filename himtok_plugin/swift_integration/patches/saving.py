"""Saving: what is in a checkpoint beside what ms-swift puts there."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from shutil import disk_usage

from swift.utils import get_logger

from .replacing import add, around

logger = get_logger()


def save_sidecars() -> None:
    """What: every checkpoint of every trainer and of `swift export` has the mask tokenizer in a subfolder, and the
    words of the training questions where they are known.
    Why: a callback's `on_save` sees sharded parameters before they are gathered, and `template.save_callback` replaces
    all of the saving. Trainers get encoded rows only.
    Goes when: a hook gets the gathered weights, and another one the rows.
    Upstream: none known (looked 2026-11-28).
    """
    from swift.pipelines.train.sft import SwiftSft
    from swift.trainers.mixin import SwiftMixin

    from himtok_plugin.mask_tokenizer.released_weights import SIDECAR_FOLDER
    from himtok_plugin.swift_integration.model.checkpoint_sidecar import (
        load_mask_tokenizer,
        save_known_words,
        save_sidecar,
    )
    from himtok_plugin.swift_integration.samples.training_words import (
        can_know_training_words,
        find_training_words,
    )

    def find_runtime(processor):
        return getattr(getattr(processor, "tokenizer", processor), "himtok", None)

    def forget_quantization(arguments: Path) -> None:
        # These options are from the training of an adapter on a quantized base model. ms-swift merges the adapter into
        # the base model in full precision; with these options it would quantize the merged model at every load.
        if arguments.is_file():
            saved = json.loads(arguments.read_text(encoding="utf-8"))
            saved |= {"quant_method": None, "quant_bits": None}
            arguments.write_text(json.dumps(saved, ensure_ascii=False, indent=2), encoding="utf-8")

    @around(
        import_module("swift.pipelines.export.merge_lora"), "save_checkpoint"
    )  # in the package, this name is a function
    def save_merged(original, model, processor, output_dir, **kwargs):
        original(model, processor, output_dir, **kwargs)
        save_sidecar(model, output_dir, None)
        forget_quantization(Path(output_dir, "args.json"))
        # Merging does not change answers, so the calibration stays valid.
        runtime = find_runtime(processor)
        if runtime is not None:
            save_known_words(runtime.known_words, output_dir)
            if runtime.calibration is not None:
                runtime.calibration.save(os.path.join(output_dir, SIDECAR_FOLDER))

    @around(import_module("swift.pipelines.export.quant"), "save_checkpoint")
    def save_quantized(original, model, processor, output_dir, **kwargs):
        original(model, processor, output_dir, **kwargs)  # ms-swift passes no model: it is saved already
        runtime = find_runtime(processor)
        if runtime is not None:
            load_mask_tokenizer(runtime.source).save_pretrained(os.path.join(output_dir, SIDECAR_FOLDER))
            save_known_words(runtime.known_words, output_dir)

    @around(SwiftSft, "_prepare_dataset")
    def prepare_dataset(original, self):
        runtime = find_runtime(self.processor)
        if runtime is not None and runtime.known_words is not None and not can_know_training_words(self.args):
            runtime.known_words = None
        return original(self)

    @around(SwiftSft, "_get_dataset")
    def get_dataset(original, self):
        train_dataset, val_dataset = original(self)
        runtime = find_runtime(self.processor)
        if runtime is not None and runtime.known_words is not None:
            every_role = not self.args.use_chat_template  # `swift pt` trains on plain texts
            runtime.known_words |= find_training_words(train_dataset, every_role)
        return train_dataset, val_dataset

    @around(SwiftMixin, "_save")
    def save(original, self, output_dir=None, state_dict=None):
        # A copy, because transformers deletes the mask tokenizer's weights from it.
        original(self, output_dir, None if state_dict is None else dict(state_dict))
        if state_dict != {}:  # with it, transformers says that the weights were not gathered: see save_sharded_models
            folder = output_dir or self.args.output_dir
            save_sidecar(self.model, folder, state_dict)
            runtime = find_runtime(self.template.processor)
            if runtime is not None:
                save_known_words(runtime.known_words, folder)


def keep_whole_checkpoints() -> None:
    """What: a checkpoint whose saving fails is recognised as broken, and `--save_total_limit` deletes broken ones
    before whole ones, and none after a broken one.
    Why: a full disk leaves half a checkpoint. transformers resumes from it without its optimizer, and counts it as one
    of those to keep. If it replaces an earlier one of the same step, its trainer_state.json would be the old one.
    Goes when: transformers writes checkpoints to a temporary folder.
    Upstream: none known (looked 2026-11-29).
    """
    from swift.trainers.mixin import SwiftMixin

    from himtok_plugin.checkpoints.model_folder import (
        STATE_FILE,
        check_training_checkpoint,
        delete_broken_checkpoints,
        find_last_whole_checkpoint,
        list_checkpoints,
    )

    @around(SwiftMixin, "_save_checkpoint")
    def save_checkpoint(original, self, *args, **kwargs):
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        if self.args.should_save:
            (folder / STATE_FILE).unlink(missing_ok=True)
        try:
            return original(self, *args, **kwargs)
        except Exception as error:
            if self.args.should_save:
                whole = find_last_whole_checkpoint(folder.parent)
                advice = "there is no whole one" if whole is None else f"resume from the last whole one, {whole}"
                reason = " ".join(str(error).split())
                free = disk_usage(folder.parent).free
                logger.error(f"{folder} is incomplete, saving it failed ({reason}; {free:,} bytes free): {advice}.")
            raise

    @around(import_module("transformers.trainer"), "rotate_checkpoints")
    def rotate_checkpoints(original, output_dir, save_total_limit=None, *args, **kwargs):
        checkpoints = list_checkpoints(Path(output_dir))
        if not save_total_limit or len(checkpoints) <= save_total_limit:
            return original(output_dir, save_total_limit, *args, **kwargs)
        newest = max(checkpoints, key=lambda path: path.stat().st_mtime)
        try:
            check_training_checkpoint(newest)
        except (ValueError, OSError) as error:
            logger.error(f"No checkpoint is deleted, because the newest one is broken: {error}.")
            return None
        delete_broken_checkpoints(checkpoints, len(checkpoints) - save_total_limit)
        return original(output_dir, save_total_limit, *args, **kwargs)


def save_sharded_models() -> None:
    """What: checkpoints that would have shards only have the mask tokenizer, and with FSDP also the model's files.
    Why: with `SHARDED_STATE_DICT`, which `--fsdp fsdp2` sets, a checkpoint has shards only, and only a resumed run can
    read those. With ZeRO-3, `stage3_gather_16bit_weights_on_model_save` set to false asks for this.
    Goes when: ms-swift writes the model's files as well.
    Upstream: modelscope/ms-swift#8198 (no model files with FSDP2).
    """
    from swift.trainers.mixin import SwiftMixin
    from transformers import Trainer
    from transformers.integrations import is_deepspeed_zero3_enabled

    from himtok_plugin.swift_integration.model.attached_mask_tokenizer import find_attached_mask_tokenizer
    from himtok_plugin.swift_integration.model.checkpoint_sidecar import save_gathered_sidecar, save_known_words
    from himtok_plugin.swift_integration.model.sharding import gather_fsdp_weights, gather_trained_zero3_weights

    @add(SwiftMixin, "save_model", hides=Trainer.save_model)
    def save_model(self, output_dir=None, _internal_call=False):
        super(SwiftMixin, self).save_model(output_dir, _internal_call)  # transformers' trainer
        mask_tokenizer = find_attached_mask_tokenizer(self.model)
        if mask_tokenizer is None:
            return
        if is_deepspeed_zero3_enabled() and not self.model_wrapped.zero_gather_16bit_weights_on_model_save():
            weights = gather_trained_zero3_weights(mask_tokenizer)  # by all processes
            if self.args.should_save:
                save_gathered_sidecar(mask_tokenizer, output_dir or self.args.output_dir, weights)
                save_known_words(self.template.tokenizer.himtok.known_words, output_dir or self.args.output_dir)
        if self.is_fsdp_enabled and "FULL_STATE_DICT" not in str(self.accelerator.state.fsdp_plugin.state_dict_type):
            weights = gather_fsdp_weights(self.model)  # by all processes
            if self.args.should_save:
                self._save(output_dir or self.args.output_dir, weights)
