"""Stages 2 and 3: ms-swift's trainer with masks in its batches.

Contract: codes are computed on the device, once for the whole batch, before the LMM runs; the mask losses are added to
the LMM's own loss; resuming restores the mask tokenizer beside the checkpoint. What kind of base model and tuner it is,
is not known here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset
from swift.trainers import Seq2SeqTrainer
from swift.utils import get_logger
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.integrations import is_deepspeed_zero3_enabled

from himtok_plugin.hierarchical_loss import HierarchicalMaskLoss, MaskLosses, code_probabilities, draw_levels
from himtok_plugin.lmm.logit_tap import LogitTap, mask_logits
from himtok_plugin.mask_tokenizer.released_weights import SIDECAR_FOLDER
from himtok_plugin.swift_integration.answering.response_masks import RESPONSE_ATTRIBUTE
from himtok_plugin.swift_integration.answering.result_boxes import add_boxes_to_result
from himtok_plugin.swift_integration.answering.result_masks import add_masks_to_result
from himtok_plugin.swift_integration.model.adapters import TRAINED_EMBEDDINGS_KEY, get_embeddings
from himtok_plugin.swift_integration.model.attached_mask_tokenizer import get_attached_mask_tokenizer
from himtok_plugin.swift_integration.model.detokenizer import DETOKENIZER_PARTS, Detokenizer, load_detokenizer
from himtok_plugin.swift_integration.model.model_extension import get_language_model
from himtok_plugin.swift_integration.model.sharding import ParametersUsedAfterForward, ShardedDetokenizer
from himtok_plugin.swift_integration.samples.mask_batch import ENCODED, IGNORE_INDEX, PREFIX, MaskBatch
from himtok_plugin.swift_integration.samples.mask_column import MaskColumn

from .device_means import DeviceMeans
from .learning_rates import move_to_own_groups, scale_embedding_updates
from .mask_metrics import MaskEvaluation, sample_key

logger = get_logger()
LEVEL_SEED = 1_000_003  # keeps the steps of runs with neighbouring seeds apart
ROWS_AT_ONCE = 100  # that are looked through for masks; the first ones usually have some
MASK_BATCH_KEY = "himtok_batch"  # key under which a batch's masks go from `_prepare_inputs` to `compute_loss`


class MaskTrainer(Seq2SeqTrainer):
    """Trains an LMM whose rows hold masks."""

    def __init__(self, *args, **kwargs):
        model, template = kwargs["model"], kwargs["template"]
        self.masks = template.masks
        self.mask_tokenizer = get_attached_mask_tokenizer(model)
        settings = self.masks.settings
        _choose_trained_parts(self.mask_tokenizer, settings.detokenizer_is_trained)
        self.mask_loss = HierarchicalMaskLoss(settings.num_coarse_levels, settings.mask_dice_weight)
        self._masks_in_step: int | None = None
        self._masks_seen: int | None = None  # in all steps so far, None before the first
        self._means = DeviceMeans()
        if template.sequence_parallel_size > 1 and settings.trains_on_masks:
            raise ValueError(
                f"sequence_parallel_size={template.sequence_parallel_size}: got a mask loss, "
                "which needs a row's logits in one place, expected 1"
            )
        if settings.trains_on_masks and not _may_have_masks(kwargs.get("train_dataset")):
            raise ValueError(f"{self._mask_loss_name()}: got rows without masks, expected some with masks in `masks`")
        self._tap = LogitTap(get_language_model(model, template.model_meta).get_output_embeddings() or nn.Identity())
        super().__init__(*args, **kwargs)
        self._share_with_processes()
        create_optimizer = self.optimizer_callback.create_optimizer
        self.optimizer_callback.create_optimizer = lambda model=None: self._with_own_rates(create_optimizer(model))
        if self.args.predict_with_generate:
            self.mask_evaluation = MaskEvaluation(self.args.process_index)
            self.infer_engine.infer = self._recording_masks(self.infer_engine.infer)

    def _share_with_processes(self) -> None:
        """Say who decodes; see sharding.py."""
        self._detokenizer = self.mask_tokenizer
        self._used_after_forward: ParametersUsedAfterForward | None = None
        self._is_sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        trained = [p for p in self.mask_tokenizer.parameters() if p.requires_grad]
        if self._is_sharded:
            self._detokenizer = ShardedDetokenizer(
                self.mask_tokenizer.encoding.expected_code_vectors, self.mask_tokenizer
            )
            if is_deepspeed_zero3_enabled():  # it wants one dtype for all that is trained
                self.mask_tokenizer.to(next(self.model.parameters()).dtype)
        elif trained and dist.is_initialized():  # one process that was launched like several has DDP as well
            self._used_after_forward = ParametersUsedAfterForward(self.model, trained)

    def _with_own_rates(self, optimizer: Optimizer) -> Optimizer:
        settings = self.masks.settings
        if settings.detokenizer_lr is not None:
            move_to_own_groups(optimizer, self.mask_tokenizer.parameters(), settings.detokenizer_lr)
        if settings.mask_rows_lr is None:
            return optimizer
        own = [p for name, p in self.model.named_parameters() if TRAINED_EMBEDDINGS_KEY in name]
        if own:
            move_to_own_groups(optimizer, own, settings.mask_rows_lr)
        elif self._is_sharded:
            raise ValueError(
                f"mask_rows_lr={settings.mask_rows_lr}: got full training with a sharded optimizer, which does not "
                "know rows, expected LoRA or no sharding"
            )
        else:
            matrices = [layer.weight for layer in get_embeddings(get_language_model(self.model, self.model.model_meta))]
            rows = torch.tensor(self.masks.vocabulary.ids())
            scale_embedding_updates(optimizer, matrices, rows, settings.mask_rows_lr / self.args.learning_rate)
        return optimizer

    def _recording_masks(self, infer):
        """Generated answers become result rows, here and in `predict.jsonl`."""

        def infer_and_record(rows, *args, **kwargs):
            responses = infer(rows, *args, **kwargs)
            for row, response in zip(rows, responses, strict=True):
                key, message = sample_key(row), response.choices[0].message
                add_masks_to_result(row, getattr(message, RESPONSE_ATTRIBUTE, []))
                add_boxes_to_result(row, message.content, self.template)
                self.mask_evaluation.add(row, key)
            return responses

        return infer_and_record

    # ----- a step

    def get_batch_samples(self, *args, **kwargs):
        """Count the supervised masks of an optimiser step, over which the mask loss is the mean."""
        samples, num_items = super().get_batch_samples(*args, **kwargs)
        count = sum(len(batch.get(PREFIX + "supervised", ())) for batch in samples)
        if self._averaging_processes(num_items) > 1 and self.masks.settings.trains_on_masks:
            total = torch.tensor(count, device=self.args.device)
            dist.all_reduce(total)
            count = int(total)
        self._masks_in_step = count
        self._masks_seen = (self._masks_seen or 0) + count
        return samples, num_items

    def _averaging_processes(self, num_items: Any) -> int:
        """Over how many processes a step's items are counted, and its loss scaled up by."""
        over_all = num_items is not None and self.args.average_tokens_across_devices
        return self.accelerator.num_processes if over_all else 1

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        masks = MaskBatch.take(inputs, self.args.device)
        if masks is not None:
            for key in ("input_ids", "labels"):
                if inputs.get(key) is not None:
                    inputs[key] = inputs[key].to(self.args.device)
            if len(masks.to_encode):
                masks.codes[masks.to_encode] = self.mask_tokenizer.encoding.encode(masks.squares_to_encode())
            masks.write_codes(inputs, self.masks.vocabulary)
            shape = inputs["input_ids"].shape
        # Codes are in place now, so ms-swift may trim the labels.
        inputs = super()._prepare_inputs(inputs)
        if masks is not None and "_data" not in inputs:
            inputs[MASK_BATCH_KEY] = (masks, shape)
        return inputs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        masks, shape = inputs.pop(MASK_BATCH_KEY, (None, None))
        logits_to_keep = inputs.get("logits_to_keep")
        labels = inputs.get("labels")
        with self._tap:
            loss, outputs = super().compute_loss(
                model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
            mode = "train" if self.model.training else "eval"
            self._log_next_token_loss(loss, labels, num_items_in_batch, mode)
            if self.masks.settings.trains_on_masks:
                loss = loss + self._mask_losses(outputs, masks, shape, logits_to_keep, num_items_in_batch, mode)
            elif self._used_after_forward is not None and loss.requires_grad:
                loss = loss + self._used_after_forward.zero
        return (loss, outputs) if return_outputs else loss

    def _mask_losses(self, outputs, masks: MaskBatch | None, shape, logits_to_keep, num_items, mode: str) -> Tensor:
        if getattr(outputs, "logits", None) is None:
            raise RuntimeError("the mask loss needs the model's logits, which use_liger_kernel does not keep")
        if masks is None or masks.supervised is None or not len(masks.supervised):
            return self._loss_of_no_mask(outputs)
        if logits_to_keep is None and outputs.logits.shape[:-1] != shape:
            # Older bases (XComposer2, Yi-VL) put images between the ids only inside the model.
            raise ValueError(
                f"template {self.template.template_meta.template_type!r}: the base model made of {shape[-1]} input_ids "
                f"{outputs.logits.shape[1]} logits, expected as many: it cannot learn with a mask loss, only without"
            )
        if masks.squares is None:
            raise ValueError(
                "mask_loss_weight: got rows that were encoded, with --to_cached_dataset, for training without a mask "
                "loss, expected the same --mask_loss_weight there"
            )
        rows = masks.supervised_logit_positions(shape, logits_to_keep)
        logits = mask_logits(self._tap.logits_behind(outputs.logits), self.masks.vocabulary.code_ids, rows)
        count = len(masks.supervised)
        probabilities = code_probabilities(logits).unflatten(0, (count, self.masks.num_mask_tokens))
        total, processes = count, 1
        # Without num_items the trainer divides by the accumulation steps itself.
        if mode == "train" and num_items is not None and self._masks_in_step:
            total = self._masks_in_step
            processes = self._averaging_processes(num_items)
        settings = self.masks.settings
        with self.accelerator.autocast():  # ms-swift's own covers the LMM's forward pass only
            losses = self._terms(probabilities, masks.targets(), torch.full((count,), 1 / total, device=logits.device))
        for name in ("bce", "dice", "hierarchical"):
            self._means.update(mode, f"loss_mask_{name}", getattr(losses, name) * (total / count))
        mask_loss = losses.bce + settings.mask_dice_weight * losses.dice
        weighted = settings.mask_loss_weight * mask_loss + settings.hierarchical_loss_weight * losses.hierarchical
        # Gradients are averaged over processes, while `total` counts the masks of all of them.
        return weighted * processes

    def _terms(self, probabilities: Tensor, target: Tensor, weights: Tensor) -> MaskLosses:
        settings = self.masks.settings
        return self.mask_loss(
            self._detokenizer,
            probabilities,
            target,
            weights=weights,
            levels=self._levels(),
            full=settings.mask_loss_weight > 0,
            hierarchical=settings.hierarchical_loss_weight > 0,
        )

    def _levels(self) -> Tensor | None:
        """Prefix lengths of this optimiser step: the same in all its batches and processes, and when it is resumed, so
        that the gradient does not depend on how a step is split."""
        k = self.masks.num_mask_tokens
        if k == 1:
            return None  # there is no prefix
        generator = torch.Generator().manual_seed(self.args.seed * LEVEL_SEED + self.state.global_step)
        return draw_levels(min(self.masks.settings.num_coarse_levels, k - 1), k, generator)

    def _loss_of_no_mask(self, outputs) -> Tensor:
        """A zero. Other processes may have masks, and the same must be communicated in all of them."""
        if not self._is_sharded:
            used = self._used_after_forward
            return torch.zeros((), device=self.args.device) if used is None or used.zero is None else used.zero
        # One mask that does not count: sharded parts are gathered as they are called, forwards and, in the order of the
        # graph, backwards. So it hangs on the logits as a mask does, or processes would wait for each other's parts.
        config, device = self._detokenizer.config, self.args.device
        rows = torch.zeros(config.num_mask_tokens, dtype=torch.int64, device=device)
        logits = mask_logits(self._tap.logits_behind(outputs.logits), self.masks.vocabulary.code_ids, rows)
        target = torch.zeros((1, config.image_size, config.image_size), device=device)
        with self.accelerator.autocast():
            losses = self._terms(code_probabilities(logits)[None], target, torch.zeros(1, device=device))
        return losses.bce + losses.dice + losses.hierarchical

    def _log_next_token_loss(self, loss: Tensor, labels: Tensor | None, num_items, mode: str) -> None:
        value = loss.detach()
        if num_items is not None and labels is not None:
            # The loss is this batch's share of the step's; as a mean over its own tokens it compares between batches.
            own = (labels[:, 1:] != IGNORE_INDEX).sum().clamp(min=1)
            value = value * num_items / own / self._averaging_processes(num_items)
        self._means.update(mode, "loss_next_token", value)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        mode = "train" if self.model.training else "eval"
        self._means.flush(mode, self.custom_metrics[mode])
        super().log(logs, *args, **kwargs)

    # ----- checkpoints

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        if isinstance(resume_from_checkpoint, (str, os.PathLike)):
            # Before anything is sharded: what FSDP saves beside an adapter is the adapter alone.
            self._load_sidecar(os.fspath(resume_from_checkpoint))
        result = super().train(resume_from_checkpoint, *args, **kwargs)
        self._warn_if_no_mask_was_supervised()
        return result

    def _warn_if_no_mask_was_supervised(self) -> None:
        """Of streams, and of rows whose masks are all in questions, it is not known before they were read."""
        if self._masks_seen is None or not self.masks.settings.trains_on_masks:
            return
        seen = torch.tensor(self._masks_seen, device=self.args.device)
        if dist.is_initialized():
            dist.all_reduce(seen)
        if not seen:
            logger.warning(
                f"{self._mask_loss_name()}: no answer of all that were trained on had a mask, so this run learned "
                "nothing from it: expected rows whose answers hold <mask>."
            )

    def _mask_loss_name(self) -> str:
        settings = self.masks.settings
        names = ("mask_loss_weight", "hierarchical_loss_weight")
        return ", ".join(f"{name}={getattr(settings, name)}" for name in names)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if not self._is_sharded:  # else DeepSpeed and FSDP have loaded it with the rest of the model
            self._load_sidecar(self.state.best_model_checkpoint)

    def _load_sidecar(self, checkpoint: str) -> None:
        folder = Path(checkpoint, SIDECAR_FOLDER)
        if not folder.is_dir():
            raise ValueError(f"checkpoint {checkpoint!r}: has no {SIDECAR_FOLDER}/")
        saved = load_detokenizer(folder)
        if not saved.encoding.has_same_weights_as(self.mask_tokenizer.encoding):
            raise ValueError(
                f"checkpoint {checkpoint!r}: was trained with another mask tokenizer than {str(self.masks.source)!r}, "
                "whose codes mean other masks"
            )
        self.mask_tokenizer.load_state_dict(saved.state_dict())
        self.mask_tokenizer.as_loaded = saved.as_loaded


def _may_have_masks(dataset: Any) -> bool:
    """False for a data set without any mask, looked through up to the first; True where that cannot be (streams)."""
    while hasattr(dataset, "dataset"):  # ms-swift's lazy and packing wrappers
        dataset = dataset.dataset
    columns = getattr(dataset, "column_names", None)
    if columns is None:
        return True
    found = [name for name in ("masks", ENCODED) if name in columns]
    if not found or not isinstance(dataset, Dataset):
        return bool(found)
    batches = dataset.select_columns(found).iter(batch_size=ROWS_AT_ONCE)
    return any(_holds_mask(value) for batch in batches for name in found for value in batch[name])


def _holds_mask(value: Any) -> bool:
    """Whether there are masks in a column of rows, packed ones (dataset.py) or encoded ones (mask_batch.py)."""
    if isinstance(value, dict):
        return any(value["starts"])
    if isinstance(value, list):
        return any(map(_holds_mask, value))
    return value is not None and bool(MaskColumn.parse(value).masks)


def _choose_trained_parts(mask_tokenizer: Detokenizer, detokenizer: bool) -> None:
    """The codebook stays as it is, so that codes, made offline too, keep their meaning."""
    mask_tokenizer.requires_grad_(False)
    for name in DETOKENIZER_PARTS:
        getattr(mask_tokenizer, name).requires_grad_(detokenizer)
