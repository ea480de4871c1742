"""Stages 2 and 3: ms-swift's trainer with masks in its batches.

Contract: the trainer encodes all masks of a batch on the device before the LMM runs, adds the mask losses to the LMM's
loss, and loads the mask tokenizer from the checkpoint when a run is resumed. It works with any base model and tuner.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from swift.trainers import Seq2SeqTrainer
from swift.utils import get_logger
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.integrations import is_deepspeed_zero3_enabled

from himtok_plugin.checkpoints.adapter_files import TRAINED_EMBEDDINGS_KEY
from himtok_plugin.hierarchical_loss import HierarchicalMaskLoss, MaskLosses, code_probabilities, draw_prefix_lengths
from himtok_plugin.lmm.gradient_balance import GradientBalance
from himtok_plugin.lmm.logit_tap import LogitTap, gather_mask_logits
from himtok_plugin.mask_tokenizer.released_weights import SIDECAR_FOLDER
from himtok_plugin.swift_integration.answering.response_masks import RESPONSE_ATTRIBUTE
from himtok_plugin.swift_integration.answering.result_boxes import add_boxes_to_result
from himtok_plugin.swift_integration.answering.result_masks import add_masks_to_result
from himtok_plugin.swift_integration.model.adapters import get_embeddings
from himtok_plugin.swift_integration.model.attached_mask_tokenizer import get_attached_mask_tokenizer
from himtok_plugin.swift_integration.model.detokenizer import DETOKENIZER_MODULES, Detokenizer, load_detokenizer
from himtok_plugin.swift_integration.model.model_extension import get_language_model
from himtok_plugin.swift_integration.model.sharding import ParametersUsedAfterForward, ShardedDetokenizer
from himtok_plugin.swift_integration.samples.mask_batch import (
    BATCH_KEY_PREFIX,
    IGNORE_INDEX,
    MaskBatch,
)

from .device_means import DeviceMeans
from .gradient_clipping import SeparateClipping
from .learning_rates import move_to_own_groups, scale_embedding_updates
from .mask_metrics import MaskEvaluation, sample_key
from .mask_search import may_have_masks

logger = get_logger()
LEVEL_SEED = 1_000_003  # a large prime: runs with neighbouring seeds share no step's seed
MASK_BATCH_KEY = "himtok_batch"  # the inputs' key with which `_prepare_inputs` passes masks to `compute_loss`


class MaskTrainer(Seq2SeqTrainer):
    """Trains an LMM on rows with masks."""

    def __init__(self, *args, **kwargs):
        model, template = kwargs["model"], kwargs["template"]
        self.masks = template.masks
        self.mask_tokenizer = get_attached_mask_tokenizer(model)
        settings = self.masks.settings
        _choose_trained_parts(self.mask_tokenizer, settings.detokenizer_is_trained)
        self.mask_loss = HierarchicalMaskLoss(settings.num_coarse_levels, settings.mask_dice_weight)
        self._masks_in_step: int | None = None
        self._masks_seen: int | None = None  # in all steps so far; None before the first
        self._means = DeviceMeans()
        self._balance = self._build_balance()
        if template.sequence_parallel_size > 1 and settings.trains_on_masks:
            raise ValueError(
                f"sequence_parallel_size={template.sequence_parallel_size}: got a mask loss, "
                "which needs all logits of a row in one process, expected 1"
            )
        if settings.trains_on_masks and not may_have_masks(kwargs.get("train_dataset")):
            raise ValueError(
                f"{self._describe_mask_loss()}: got rows without masks, expected some with masks in `masks`"
            )
        language_model: Any = get_language_model(model, template.model_meta)
        self._tap = LogitTap(language_model.get_output_embeddings() or nn.Identity(), model)
        super().__init__(*args, **kwargs)
        self._prepare_detokenizer()
        create_optimizer = self.optimizer_callback.create_optimizer
        self.optimizer_callback.create_optimizer = lambda model=None: self._set_learning_rates(create_optimizer(model))
        if self.args.predict_with_generate:
            self.mask_evaluation = MaskEvaluation(self.args.process_index)
            self.infer_engine.infer = self._record_masks(self.infer_engine.infer)

    def _build_balance(self) -> GradientBalance | None:
        ratio = self.masks.settings.mask_gradient_ratio
        if ratio is None:
            return None
        report = functools.partial(self._means.update, "train", "mask_gradient_scale")
        return GradientBalance(ratio, self.masks.num_mask_tokens, report)

    def _prepare_detokenizer(self) -> None:
        """Prepare decoding and clipping with DeepSpeed, FSDP or DDP; see model/sharding.py."""
        self._detokenizer: Any = self.mask_tokenizer
        self._used_after_forward: ParametersUsedAfterForward | None = None
        self._is_sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        trained = [p for p in self.mask_tokenizer.parameters() if p.requires_grad]
        if self._is_sharded and self.masks.settings.trains_on_masks:
            self._detokenizer = ShardedDetokenizer(
                self.mask_tokenizer.encoding.expected_code_vectors, self.mask_tokenizer
            )
            if is_deepspeed_zero3_enabled():  # requires one dtype for all trained parameters
                self.mask_tokenizer.to(next(self.model.parameters()).dtype)
        elif trained and dist.is_initialized():  # a single process of torchrun uses DDP too
            self._used_after_forward = ParametersUsedAfterForward(self.model, trained)
        max_norm = self.masks.settings.detokenizer_max_grad_norm
        if max_norm is not None and trained:
            report = functools.partial(self._means.update, "train", "detokenizer_grad_norm")
            SeparateClipping(trained, max_norm, report).attach(self.accelerator)

    def _set_learning_rates(self, optimizer: Optimizer) -> Optimizer:
        settings = self.masks.settings
        if settings.detokenizer_lr is not None:
            move_to_own_groups(optimizer, self.mask_tokenizer.parameters(), settings.detokenizer_lr)
        if settings.mask_rows_lr is None:
            return optimizer
        adapter_embeddings = [p for name, p in self.model.named_parameters() if TRAINED_EMBEDDINGS_KEY in name]
        if adapter_embeddings:
            move_to_own_groups(optimizer, adapter_embeddings, settings.mask_rows_lr)
        elif self._is_sharded:
            raise ValueError(
                f"mask_rows_lr={settings.mask_rows_lr}: got full training with a sharded optimizer, which cannot "
                "scale single embeddings, expected LoRA or no sharding"
            )
        else:
            layers: list[Any] = get_embeddings(get_language_model(self.model, self.model.model_meta))
            token_ids = torch.tensor(self.masks.vocabulary.ids())
            scale = settings.mask_rows_lr / self.args.learning_rate
            scale_embedding_updates(optimizer, [layer.weight for layer in layers], token_ids, scale)
        return optimizer

    def _record_masks(self, infer: Callable) -> Callable:
        """Wrap `infer`: its rows become results with masks, for the metrics and for `predict.jsonl`."""

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
        """Count the supervised masks of an optimizer step; the mask loss is the mean over them."""
        samples, num_items = super().get_batch_samples(*args, **kwargs)
        count = sum(len(batch.get(BATCH_KEY_PREFIX + "supervised", ())) for batch in samples)
        if self._count_averaging_processes(num_items) > 1 and self.masks.settings.trains_on_masks:
            total = torch.tensor(count, device=self.args.device)
            dist.all_reduce(total)
            count = int(total)
        self._masks_in_step = count
        self._masks_seen = (self._masks_seen or 0) + count
        return samples, num_items

    def _count_averaging_processes(self, num_items: Any) -> int:
        """Return over how many processes ms-swift counts a step's items; it scales the loss by this number."""
        over_all = num_items is not None and self.args.average_tokens_across_devices
        return self.accelerator.num_processes if over_all else 1

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        masks = MaskBatch.pop_from(inputs, self.args.device)
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
                loss = loss + self._compute_mask_loss(outputs, masks, shape, logits_to_keep, num_items_in_batch, mode)
            elif self._used_after_forward is not None and loss.requires_grad:
                loss = loss + self._used_after_forward.zero
        return (loss, outputs) if return_outputs else loss

    def _compute_mask_loss(
        self, outputs, masks: MaskBatch | None, shape, logits_to_keep, num_items, mode: str
    ) -> Tensor:
        if getattr(outputs, "logits", None) is None:
            raise RuntimeError("the mask loss needs logits: got none from the model, expected a kernel that keeps them")
        if masks is None or masks.supervised is None or not len(masks.supervised):
            return self._zero_mask_loss(outputs)
        if logits_to_keep is None and outputs.logits.shape[:-1] != shape:
            # Older base models (XComposer2, Yi-VL) insert image features between the ids inside the model.
            raise ValueError(
                f"template {self.template.template_meta.template_type!r}: got {outputs.logits.shape[1]} logits for "
                f"{shape[-1]} input_ids, expected as many: this base model can be trained without a mask loss only"
            )
        if masks.squares is None:
            raise ValueError(
                "mask_loss_weight: got rows that --to_cached_dataset encoded for training without a mask loss, "
                "expected the same --mask_loss_weight there"
            )
        positions = masks.supervised_logit_positions(shape, logits_to_keep)
        logits = self._gather_mask_logits(outputs, positions, self._balance)
        count = len(masks.supervised)
        probabilities = code_probabilities(logits).unflatten(0, (count, self.masks.num_mask_tokens))
        total, processes = count, 1
        # Without num_items the trainer divides by the accumulation steps itself.
        if mode == "train" and num_items is not None and self._masks_in_step:
            total = self._masks_in_step
            processes = self._count_averaging_processes(num_items)
        settings = self.masks.settings
        with self.accelerator.autocast():  # ms-swift's own covers the LMM's forward pass only
            losses = self._compute_loss_terms(
                probabilities, masks.supervised_squares(), torch.full((count,), 1 / total, device=logits.device)
            )
        for name in ("bce", "dice", "hierarchical"):
            self._means.update(mode, f"loss_mask_{name}", getattr(losses, name) * (total / count))
        mask_loss = losses.bce + settings.mask_dice_weight * losses.dice
        weighted = settings.mask_loss_weight * mask_loss + settings.hierarchical_loss_weight * losses.hierarchical
        # Gradients are averaged over processes, while `total` counts the masks of all of them.
        return weighted * processes

    def _gather_mask_logits(self, outputs: Any, positions: Tensor, balance: GradientBalance | None = None) -> Tensor:
        logits = self._tap.find_tapped_logits(outputs.logits)
        origin = self._tap.find_origin(outputs.logits)
        return gather_mask_logits(logits, self.masks.vocabulary.code_ids, positions, balance, origin)

    def _compute_loss_terms(self, probabilities: Tensor, target: Tensor, weights: Tensor) -> MaskLosses:
        settings = self.masks.settings
        return self.mask_loss(
            self._detokenizer,
            probabilities,
            target,
            weights=weights,
            levels=self._draw_levels(),
            full=settings.mask_loss_weight > 0,
            hierarchical=settings.hierarchical_loss_weight > 0,
        )

    def _draw_levels(self) -> Tensor | None:
        """Draw the prefix lengths of this optimizer step.

        They are the same in all batches and processes, and in a resumed run, so that the gradient does not depend on
        how a step is split.
        """
        k = self.masks.num_mask_tokens
        if k == 1:
            return None  # there is no prefix
        generator = torch.Generator().manual_seed(self.args.seed * LEVEL_SEED + self.state.global_step)
        return draw_prefix_lengths(min(self.masks.settings.num_coarse_levels, k - 1), k, generator)

    def _zero_mask_loss(self, outputs) -> Tensor:
        """Return the loss 0 of a batch without masks.

        With sharding, every process has to communicate in the same order, whether its batch has masks or not.
        """
        if not self._is_sharded:
            used = self._used_after_forward
            return torch.zeros((), device=self.args.device) if used is None or used.zero is None else used.zero
        # One mask with weight 0. Sharded modules are gathered when they run: in the forward pass, and in the backward
        # pass in the order of the graph. So this loss depends on the logits as that of a real mask does; otherwise
        # processes would wait for each other.
        config, device = self._detokenizer.config, self.args.device
        positions = torch.zeros(config.num_mask_tokens, dtype=torch.int64, device=device)
        logits = self._gather_mask_logits(outputs, positions)
        target = torch.zeros((1, config.image_size, config.image_size), device=device)
        with self.accelerator.autocast():
            losses = self._compute_loss_terms(code_probabilities(logits)[None], target, torch.zeros(1, device=device))
        return losses.bce + losses.dice + losses.hierarchical

    def _log_next_token_loss(self, loss: Tensor, labels: Tensor | None, num_items, mode: str) -> None:
        value = loss.detach()
        if num_items is not None and labels is not None:
            # The loss is this batch's share of the step's loss. The mean over the batch's own tokens is comparable.
            num_tokens = (labels[:, 1:] != IGNORE_INDEX).sum().clamp(min=1)
            value = value * num_items / num_tokens / self._count_averaging_processes(num_items)
        self._means.update(mode, "loss_next_token", value)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        mode = "train" if self.model.training else "eval"
        self._means.flush(mode, self.custom_metrics[mode])
        super().log(logs, *args, **kwargs)

    # ----- checkpoints

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        if isinstance(resume_from_checkpoint, (str, os.PathLike)):
            # Before anything is sharded, because with an adapter FSDP's own checkpoint has the adapter only.
            self._load_sidecar(os.fspath(resume_from_checkpoint))
        result = super().train(resume_from_checkpoint, *args, **kwargs)
        self._warn_if_no_mask_was_supervised()
        return result

    def _warn_if_no_mask_was_supervised(self) -> None:
        """Warn after training: only then this is known of streams, and of rows whose masks are all in questions."""
        if self._masks_seen is None or not self.masks.settings.trains_on_masks:
            return
        seen = torch.tensor(self._masks_seen, device=self.args.device)
        if dist.is_initialized():
            dist.all_reduce(seen)
        if not seen:
            logger.warning(
                f"{self._describe_mask_loss()}: got no answer with a mask in the whole run, so the mask loss trained "
                "nothing, expected rows whose answers have <mask>."
            )

    def _describe_mask_loss(self) -> str:
        settings = self.masks.settings
        names = ("mask_loss_weight", "hierarchical_loss_weight")
        return ", ".join(f"{name}={getattr(settings, name)}" for name in names)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if not self._is_sharded:  # DeepSpeed and FSDP load it with the model
            self._load_sidecar(self.state.best_model_checkpoint)

    def _load_sidecar(self, checkpoint: str) -> None:
        folder = Path(checkpoint, SIDECAR_FOLDER)
        if not folder.is_dir():
            raise ValueError(f"checkpoint {checkpoint!r}: got no folder {SIDECAR_FOLDER}/, expected the mask tokenizer")
        saved = load_detokenizer(folder)
        if saved.encoding is None or not saved.encoding.has_same_weights_as(self.mask_tokenizer.encoding):
            raise ValueError(
                f"checkpoint {checkpoint!r}: got a mask tokenizer with other codes than {str(self.masks.source)!r}, "
                "expected the one that the checkpoint was trained with"
            )
        self.mask_tokenizer.load_state_dict(saved.state_dict())
        self.mask_tokenizer.as_loaded = saved.as_loaded


def _choose_trained_parts(mask_tokenizer: Detokenizer, detokenizer: bool) -> None:
    """Freeze everything but the de-tokenizer: codes, also those made offline, keep their meaning."""
    mask_tokenizer.requires_grad_(False)
    for name in DETOKENIZER_MODULES:
        getattr(mask_tokenizer, name).requires_grad_(detokenizer)
