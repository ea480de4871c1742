"""Training: what is trained, by which trainer, on how many devices, and on which samples of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from swift.utils import get_logger

from .replacing import around, is_replaced

logger = get_logger()


def train_mask_tokens_beside_adapters() -> None:
    """What: adapters train and save the mask tokens' rows of the embeddings as well.
    Why: ms-swift builds PEFT's configuration from its own flags, without `trainable_token_indices`.
    Goes when: that is one of them.
    """
    from swift.pipelines.train.tuner import TunerMixin

    from himtok_plugin.swift_integration.model import adapters
    from himtok_plugin.swift_integration.model.mask_runtime import get_mask_runtime
    from himtok_plugin.swift_integration.model.model_extension import get_language_model

    @around(TunerMixin, "prepare_model")
    def prepare_model(original, cls, args, model, *, template=None, **kwargs):
        runtime = None if template is None else get_mask_runtime(template)
        owner = None if runtime is None else get_language_model(model, args.model_meta)
        model = original(cls, args, model, template=template, **kwargs)
        if runtime is not None and args.is_adapter:
            if runtime.embeddings_are_new or not (args.resume_from_checkpoint or args.adapters):
                adapters.train_mask_token_embeddings(model, owner, runtime.vocabulary, runtime.embeddings_are_new)
            adapters.refuse_sharded_embeddings(model)
            adapters.exclude_embeddings_on_save(model)
        if runtime is not None and runtime.embeddings_are_new and adapters.has_frozen_embeddings(owner):
            logger.warning(
                "The mask tokens' embedding rows are new, and frozen: this run learns no mask. Train the language "
                "model's embeddings (--freeze_llm false), or begin with a checkpoint that knows mask tokens."
            )
        return model


def choose_trainers() -> None:
    """What: causal-LM training of a base with masks runs `MaskTrainer`, that of a mask tokenizer `StageOneTrainer`.
    Why: the factory maps task types, and both are of the same.
    Goes when: the factory asks the model type.
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


def shard_on_cpus() -> None:
    """What: FSDP shards on CPUs as well.
    Why: accelerate knows it on accelerators only; on CPUs it goes on with DDP and says nothing.
    Goes when: accelerate does it, or refuses.
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


def sample_with_masks_of_questions() -> None:
    """What: in reinforcement learning, rows whose questions hold `<mask>` are sampled and trained with their masks.
    Why: ms-swift hands the template its own columns only; the others go to the reward functions.
    Goes when: a plugin can say which further columns belong to a row.
    """
    import swift.infer_engine.protocol as protocol
    from swift.rl_core.data import OnPolicySample
    from swift.trainers import TrainerFactory

    from himtok_plugin.mask_text import MASK_PLACEHOLDER

    @dataclass
    class RolloutInferRequest(protocol.RolloutInferRequest):
        masks: Any = field(default_factory=list)

    @around(OnPolicySample, "to_template_dict")
    def with_masks(original, self):
        masks = self.extra.get("masks")
        return {**original(self), **({} if masks is None else {"masks": masks})}

    @around(OnPolicySample, "to_infer_request")
    def request_with_masks(original, self, include_extra=False):
        request, masks = original(self, include_extra), self.extra.get("masks")
        return request if masks is None else RolloutInferRequest(**vars(request), masks=masks)

    log = "_apply_chat_template_to_messages_list"

    def question_without_masks(original, self, messages_list):
        # The log's questions are encoded anew, without the rest of their rows.
        named = [
            [{**m, "content": m["content"].replace(MASK_PLACEHOLDER, "[mask]")} for m in messages]
            for messages in messages_list
        ]
        return original(self, named)

    @around(TrainerFactory, "get_trainer_cls")
    def get_logging_trainer_cls(original, cls, args):
        trainer_class = original(cls, args)
        if hasattr(trainer_class, log) and not is_replaced(trainer_class, log):
            around(trainer_class, log)(question_without_masks)
        return trainer_class
