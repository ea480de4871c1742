"""Stage 1: the mask tokenizer as a model type that `swift sft` trains.

Contract: `register_mask_tokenizer` registers the model type `himtok_mask_tokenizer` with ms-swift: its loader and a
template for rows that have only masks. `StageOneTrainer` trains it with the objective of its code scheme. The
checkpoint is a `save_pretrained` folder. ms-swift requires a text tokenizer, so the model has an empty one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from swift.model import ModelLoader, ModelMeta, register_model
from swift.template import Template, TemplateMeta, register_template
from swift.trainers import Seq2SeqTrainer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModel, GenerationConfig, PreTrainedTokenizerFast

from himtok_plugin.data.samples import load_squares
from himtok_plugin.mask_tokenizer import MaskTokenizer, MaskTokenizerConfig
from himtok_plugin.mask_tokenizer.box.objective import BoxObjective
from himtok_plugin.mask_tokenizer.objective import StageOneObjective, measure_codebook_usage
from himtok_plugin.metrics.reconstruction import ReconstructionMetrics
from himtok_plugin.swift_integration.samples.mask_column import MaskColumn

from .device_means import DeviceMeans

MODEL_TYPE = MaskTokenizerConfig.model_type
END_TOKEN = "<end>"


def register_mask_tokenizer() -> None:
    """Register model type and template with ms-swift and transformers; idempotent."""
    AutoConfig.register(MODEL_TYPE, MaskTokenizerConfig, exist_ok=True)
    AutoModel.register(MaskTokenizerConfig, MaskTokenizer, exist_ok=True)
    register_template(
        TemplateMeta(MODEL_TYPE, prefix=[], prompt=["{{QUERY}}"], chat_sep=[], template_cls=MaskOnlyTemplate),
        exist_ok=True,
    )
    register_model(
        ModelMeta(
            MODEL_TYPE,
            [],
            MaskTokenizerLoader,
            template=MODEL_TYPE,
            architectures=["MaskTokenizer"],
            torch_dtype=torch.float32,
        ),
        exist_ok=True,
    )


class MaskTokenizerLoader(ModelLoader):
    """Loads a mask tokenizer as the model, with an empty text tokenizer."""

    default_trust_remote_code = False

    def get_processor(self, model_dir, config) -> PreTrainedTokenizerFast:
        empty = Tokenizer(WordLevel({END_TOKEN: 0}, unk_token=END_TOKEN))
        return PreTrainedTokenizerFast(tokenizer_object=empty, eos_token=END_TOKEN, pad_token=END_TOKEN)

    def get_model(self, model_dir, config, processor, model_kwargs) -> MaskTokenizer:
        model = MaskTokenizer.from_pretrained(model_dir, dtype=self.torch_dtype)
        model.generation_config = GenerationConfig()  # ms-swift sets its fields before training
        return model


class MaskOnlyTemplate(Template):
    """Encodes the `masks` of a row and ignores its other columns."""

    def _encode_truncated(self, inputs) -> dict[str, Any]:
        column = MaskColumn.parse(inputs.extra_kwargs.get("masks") or [])
        if not column.masks:
            raise ValueError(f"{column.name}: masks is empty, expected at least one mask")
        side = self.config.image_size
        squares = load_squares(dict(enumerate(column.masks)), side, None, column.name)
        return {"squares": squares, "input_ids": [0], "length": len(squares)}

    def _data_collator(self, batch: list[dict[str, Any]], *, padding_to: int | None = None) -> dict[str, Any]:
        squares = torch.from_numpy(np.concatenate([row["squares"] for row in batch]))
        # The trainer weights batches by their number of labels: one per mask.
        return {"squares": squares, "labels": torch.zeros((1, len(squares)), dtype=torch.int64)}

    def print_inputs(self, inputs: dict[str, Any]) -> None:
        return  # there is no text to print


def _build_objective(model: MaskTokenizer, settings: Any) -> StageOneObjective | BoxObjective:
    """The objective of the mask tokenizer's code scheme, with the options of the command."""
    common: dict[str, Any] = {
        "commitment_weight": settings.commitment_weight,
        "prefix_loss_weight": settings.prefix_loss_weight,
        "dice_weight": settings.mask_dice_weight,
    }
    if model.config.code_scheme == "box":
        return BoxObjective(model, collecting_steps=settings.continuous_warmup_steps, **common)
    return StageOneObjective(
        model,
        continuous_warmup_steps=settings.continuous_warmup_steps,
        dead_code_steps=settings.dead_code_steps,
        codebook_weight=settings.codebook_weight,
        entropy_weight=settings.entropy_weight,
        **common,
    )


class StageOneTrainer(Seq2SeqTrainer):
    """Trains a mask tokenizer with the stage-1 objective."""

    def __init__(self, *args, **kwargs):
        from himtok_plugin.swift_integration.options.current_arguments import get_current_arguments

        model: MaskTokenizer = kwargs["model"]
        settings: Any = get_current_arguments()
        self.objective = _build_objective(model, settings)
        self._usage = {mode: torch.zeros(model.quantize.num_vectors, dtype=torch.int64) for mode in ("train", "eval")}
        self._means = DeviceMeans()
        self._reconstruction = ReconstructionMetrics(model.config.num_mask_tokens)
        super().__init__(*args, **kwargs)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs["squares"] = inputs["squares"].to(self.args.device).float() / 255
        return inputs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        squares = inputs["squares"]
        mode = "train" if self.model.training else "eval"
        output = model(squares, objective=self.objective, step=self.state.global_step)
        loss = output.loss
        if num_items_in_batch is not None:  # the mean over the step's masks, also with several batches
            loss = loss * (len(squares) / num_items_in_batch)
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes
        for name, value in output.terms.items():
            self._means.update(mode, f"loss_{name}", value)
        if output.codes is not None:
            codes = self.objective.model.quantize.vector_indices(output.codes).flatten()
            usage = self._usage[mode] = self._usage[mode].to(codes.device)
            usage.index_add_(0, codes, torch.ones_like(codes))
            if mode == "eval":
                self._reconstruction.update(self.objective.model, output.codes, list((squares >= 0.5).cpu().numpy()))
        return (loss, output) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None, **kwargs):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        return loss.detach(), None, None

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        mode = "train" if self.model.training else "eval"
        if self._usage[mode].any():
            prefix = "eval_" if mode == "eval" else ""
            logs.update({prefix + name: value for name, value in measure_codebook_usage(self._usage[mode]).items()})
            self._usage[mode].zero_()
        if mode == "eval":
            self._add_reconstruction_scores()
        self._means.flush(mode, self.custom_metrics[mode])
        super().log(logs, *args, **kwargs)

    def _add_reconstruction_scores(self) -> None:
        """Add IoU at several prefix lengths and boundary F at full length to ms-swift's metrics.

        They are sums, which ms-swift adds up over processes.
        """
        k = self.objective.model.config.num_mask_tokens
        for n, scores in self._reconstruction.compute().items():
            names = {f"iou_{n}": "gIoU", **({"boundary_F": "boundary_F"} if n == k else {})}
            for name, score in names.items():
                value, samples = scores[score], scores["samples"]
                if samples and value is not None:
                    metric = self.custom_metrics["eval"][name]
                    metric.state += value * samples
                    metric.count += samples
        self._reconstruction = ReconstructionMetrics(k)
