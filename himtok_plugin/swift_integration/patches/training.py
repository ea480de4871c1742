"""Training: trained parameters, the trainer, sharding on CPUs, and the samples of reinforcement learning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from swift.utils import get_logger
from torch import nn

from .replacing import around, is_replaced

logger = get_logger()
FROZEN_ROWS_SCALE = 1  # of mask tokens that are learned with frozen embeddings: docs/real_base.md#writing


def train_mask_tokens_with_adapters() -> None:
    """What: adapters also train and save the embeddings of the mask tokens.
    Why: ms-swift has no flag for PEFT's `trainable_token_indices`.
    Goes when: ms-swift has one.
    Upstream: huggingface/peft#2376 (the option in PEFT), modelscope/ms-swift#5960 (embeddings with LoRA).
    """
    from swift.pipelines.train.tuner import TunerMixin

    from himtok_plugin.swift_integration.model import adapters
    from himtok_plugin.swift_integration.model.mask_runtime import get_mask_runtime
    from himtok_plugin.swift_integration.model.model_extension import get_language_model

    @around(TunerMixin, "prepare_model")
    def prepare_model(original, cls, args, model, *, template=None, **kwargs):
        runtime = None if template is None else get_mask_runtime(template)
        if runtime is None:
            return original(cls, args, model, template=template, **kwargs)
        owner: Any = get_language_model(model, args.model_meta)
        model = original(cls, args, model, template=template, **kwargs)
        if args.is_adapter:
            if runtime.embeddings_are_new or not (args.resume_from_checkpoint or args.adapters):
                adapters.train_mask_token_embeddings(model, owner, runtime.vocabulary, runtime.embeddings_are_new)
            adapters.refuse_sharded_embeddings(model)
            adapters.exclude_embeddings_on_save(model)
        is_frozen = runtime.embeddings_are_new and adapters.has_frozen_embeddings(owner)
        if is_frozen and args.mask_rows_scale < FROZEN_ROWS_SCALE:
            logger.warning(
                "The embeddings of the mask tokens are new, frozen and close together, so this run cannot learn masks. "
                "Train the language model's embeddings (--freeze_llm false), let them begin further apart "
                f"(--mask_rows_scale {FROZEN_ROWS_SCALE}), or start from a checkpoint that has mask tokens."
            )
        return model


def choose_trainers() -> None:
    """What: `StageOneTrainer` trains a mask tokenizer, and `MaskTrainer` every other multimodal model.
    Why: ms-swift chooses the trainer by task type, which is `causal_lm` for both.
    Goes when: a plugin can register trainers.
    Upstream: modelscope/ms-swift#6355 (asks how to use an own trainer).
    """
    from swift.trainers import TrainerFactory

    from himtok_plugin.swift_integration.model.model_extension import uses_mask_trainer

    @around(TrainerFactory, "get_trainer_cls")
    def get_trainer_cls(original, cls, args):
        trainer_class = original(cls, args)
        if not uses_mask_trainer(args):
            return trainer_class
        from himtok_plugin.swift_integration.training.stage_one import MODEL_TYPE, StageOneTrainer
        from himtok_plugin.swift_integration.training.trainer import MaskTrainer

        if args.model_meta.model_type == MODEL_TYPE:
            return StageOneTrainer
        return MaskTrainer if args.model_meta.is_multimodal else trainer_class


def align_weights_on_cpus() -> None:
    """What: trainings begin with weights at addresses that do not depend on the files they were loaded from.
    Why: a resumed run loads another file than the whole run. On some CPUs, matrix products depend on the weights'
    addresses in the last digits.
    Goes when: transformers copies the weights that it maps from safetensors files.
    Upstream: none known (looked 2026-11-29).
    """
    from swift.trainers.mixin import SwiftMixin

    from himtok_plugin.lmm.aligned_weights import align_weights

    @around(SwiftMixin, "train")
    def train(original, self, *args, **kwargs):
        for name in ("model", "ref_model"):
            model = getattr(self, name, None)
            if isinstance(model, nn.Module):
                align_weights(model)
        return original(self, *args, **kwargs)


def keep_dtype_of_kto_rewards() -> None:
    """What: KTO's rewards have the dtype of the log-probabilities also in a process whose batch has one label only.
    Why: the missing rewards are float32 in trl. With half precision (ZeRO, FSDP) the processes then gather tensors of
    different sizes, which ends in an error of the communication library or in waiting forever.
    Goes when: they have the dtype of the others in trl.
    Upstream: modelscope/ms-swift#3830 (mismatch between collectives in KTO with ZeRO).
    """
    from swift.trainers import TrainerFactory

    name = "kto_loss"

    def kto_loss(original, self, policy_chosen_logps, *args, **kwargs):
        losses, chosen, rejected, kl = original(self, policy_chosen_logps, *args, **kwargs)
        dtype = policy_chosen_logps.dtype
        return losses, chosen.to(dtype), rejected.to(dtype), kl

    @around(TrainerFactory, "get_trainer_cls")
    def get_kto_trainer_cls(original, cls, args):
        trainer_class = original(cls, args)
        if hasattr(trainer_class, name) and not is_replaced(trainer_class, name):
            around(trainer_class, name)(kto_loss)
        return trainer_class


def shard_on_cpus() -> None:
    """What: FSDP shards on CPUs as well.
    Why: accelerate supports it on accelerators only; on CPUs it silently uses DDP instead.
    Goes when: accelerate supports it or raises an error.
    Upstream: none known (looked 2026-11-28).
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    @around(AcceleratorState, "__init__")
    def init(original, self, *args, **kwargs):
        original(self, *args, **kwargs)
        plugin = kwargs.get("fsdp_plugin")
        if plugin is None or self.distributed_type != DistributedType.MULTI_CPU:
            return
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        if self._mixed_precision != "no":
            plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin = plugin


def pass_question_masks_to_samples() -> None:
    """What: in reinforcement learning, the template gets the masks of questions with `<mask>`.
    Why: ms-swift passes only its own columns to the template, and the others to reward functions.
    Goes when: a plugin can name further columns of a template's inputs.
    Upstream: none known (looked 2026-11-28).
    """
    import swift.infer_engine.protocol as protocol
    from swift.rl_core.data import OnPolicySample
    from swift.trainers import TrainerFactory

    from himtok_plugin.mask_text import MASK_PLACEHOLDER

    @dataclass
    class RolloutInferRequest(protocol.RolloutInferRequest):
        masks: Any = field(default_factory=list)

    @around(OnPolicySample, "to_template_dict")
    def to_template_dict(original, self):
        masks = self.extra.get("masks")
        return {**original(self), **({} if masks is None else {"masks": masks})}

    @around(OnPolicySample, "to_infer_request")
    def to_infer_request(original, self, include_extra=False):
        request, masks = original(self, include_extra), self.extra.get("masks")
        return request if masks is None else RolloutInferRequest(**vars(request), masks=masks)

    name = "_apply_chat_template_to_messages_list"

    def remove_placeholders(original, self, messages_list):
        # The trainer encodes questions again for its log, without the masks of the row.
        without_masks = [
            [{**m, "content": m["content"].replace(MASK_PLACEHOLDER, "[mask]")} for m in messages]
            for messages in messages_list
        ]
        return original(self, without_masks)

    @around(TrainerFactory, "get_trainer_cls")
    def get_logging_trainer_cls(original, cls, args):
        trainer_class = original(cls, args)
        if hasattr(trainer_class, name) and not is_replaced(trainer_class, name):
            around(trainer_class, name)(remove_placeholders)
        return trainer_class
