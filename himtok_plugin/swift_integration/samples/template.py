"""ms-swift's template class of any base model, extended by masks: samples, batches and generation.

Contract: `compose_mask_template` puts `MaskTemplateMixin` in front of a template class. Each `<mask>`, in any turn, is
replaced by mask text. In training with `MaskTrainer`, a mask without codes gets k placeholder codes and its square is
passed on, so that the training step encodes the whole batch on the device. Otherwise the template encodes it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from swift.utils import get_logger, patch_getattr

from himtok_plugin.data.samples import CODES, check_boxes, load_squares
from himtok_plugin.mask_text import MASK_PLACEHOLDER
from himtok_plugin.swift_integration.model.mask_runtime import MaskRuntime

from .mask_batch import SAMPLE_MASKS_KEY, SampleMasks, collate_masks
from .mask_column import MaskColumn
from .placeholders import count_masks, split_masks_of_pair, write_mask_text
from .sample_images import get_image_name, load_upright_images, name_images_in_errors
from .unpickling import reduce_with_plugins

logger = get_logger()
CLASS_PREFIX = "MaskTemplate__"


if TYPE_CHECKING:
    from swift.template import Template
else:
    Template = object  # a mix-in: `compose_mask_template` adds the template class


class MaskTemplateMixin(Template):
    """Overrides methods of `swift.template.Template`, in front of a base model's template class."""

    @property
    def masks(self) -> MaskRuntime:
        """The run's options, vocabulary and mask tokenizer, which `extend_loaded_model` has stored."""
        return self.tokenizer.himtok

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return reduce_with_plugins(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle in a spawned data-loader worker.

        ms-swift makes a processor forward attributes to its tokenizer, but only in the process that loaded it.
        """
        self.__dict__.update(state)
        if hasattr(self.processor, "tokenizer"):
            patch_getattr(type(self.processor), "tokenizer")

    @property
    def _defers_encoding(self) -> bool:
        """Whether the training step encodes masks; otherwise the template does."""
        return self.is_training and self.masks.trainer_encodes

    # ----- one sample

    def _preprocess_inputs(self, inputs: Any) -> None:
        column = _parse_column(inputs)
        # ms-swift now replaces paths by loaded images, and some templates resize them (MAX_PIXELS, Qwen).
        inputs.himtok_row, inputs.himtok_images = column.name, [get_image_name(image) for image in inputs.images]
        check_boxes(inputs.objects, column.name)
        with name_images_in_errors(inputs):
            inputs.images, header = load_upright_images(inputs.images, column.name)
            inputs.himtok_size = None if header is None else header.size
            inputs.himtok_frame = "" if header is None else header.frame_note
            super()._preprocess_inputs(inputs)
        inputs.himtok_masks = self._write_masks(inputs, column)

    def _rlhf_encode(self, inputs: Any, check_rejected: bool = True) -> dict[str, Any]:
        """Encode a preference pair, after splitting the sample's masks between its two answers."""
        if inputs.rejected is not None:
            if self.mode == "kto":
                # The rejected answer belongs to another image; patches/rows.py has combined the masks already.
                inputs.rejected.himtok_any_size = True
            else:
                column = _parse_column(inputs.chosen)
                columns = split_masks_of_pair(inputs.chosen, inputs.rejected, column, self._check_codes(column))
                inputs.chosen.extra_kwargs["masks"], inputs.rejected.extra_kwargs["masks"] = columns
        return super()._rlhf_encode(inputs, check_rejected)

    def _write_masks(self, inputs: Any, column: MaskColumn) -> SampleMasks:
        """Replace every `<mask>` of the sample by mask text; return what the collator needs."""
        placeholders = count_masks(inputs)
        has_answer = not self.is_training and bool(inputs.messages) and inputs.messages[-1]["role"] == "assistant"
        # Where the model generates the answer, ms-swift has removed that of the dataset, and its masks are not needed.
        all_used = self._defers_encoding or has_answer or self.mode in ("rlhf", "kto")
        if placeholders > len(column.masks) or (placeholders < len(column.masks) and all_used):
            raise ValueError(
                f"{column.name}: messages hold {placeholders} {MASK_PLACEHOLDER}, masks holds {len(column.masks)}: "
                "expected one mask for each"
            )
        sources, known = column.masks[:placeholders], self._check_codes(column)[:placeholders]
        squares = None
        if not self._defers_encoding:
            known = self._encode_missing(inputs, sources, known, column.name)
        elif None in known or self.masks.settings.trains_on_masks:
            squares = self._load_squares(inputs, dict(enumerate(sources)), column.name)
        starts = write_mask_text(inputs, known, self.masks.num_mask_tokens)
        return SampleMasks(starts=starts, squares=squares, codes=known)

    def _check_codes(self, column: MaskColumn) -> list[list[int] | None]:
        return column.check_codes(self.masks.num_mask_tokens, self.masks.codebook_size)

    def _encode_missing(
        self, inputs: Any, sources: list[Any], known: list[list[int] | None], name: str
    ) -> list[list[int] | None]:
        """Encode the masks that have no codes; return the codes of all."""
        missing = [i for i, codes in enumerate(known) if codes is None]
        if not missing:
            return known
        squares = torch.from_numpy(self._load_squares(inputs, {i: sources[i] for i in missing}, name)).float() / 255
        encoded = self.masks.encode(squares).tolist()
        known = list(known)
        for i, codes in zip(missing, encoded, strict=True):
            known[i] = codes
        return known

    def _load_squares(self, inputs: Any, sources: dict[int, Any], name: str) -> np.ndarray:
        """Load masks as squares, uint8 (m, s, s); each must have the size of the sample's first image, if any."""
        size = None if getattr(inputs, "himtok_any_size", False) else inputs.himtok_size
        return load_squares(sources, self.masks.image_size, size, name, getattr(inputs, "himtok_frame", ""))

    def _encode_truncated(self, inputs: Any) -> dict[str, Any]:
        from swift.template import MaxLengthError

        try:
            with name_images_in_errors(inputs):  # some templates load their images here
                encoded = super()._encode_truncated(inputs)
            self._keep_masks(encoded, inputs)
        except MaxLengthError as error:
            # ms-swift drops such samples silently, possibly most of a dataset with long answers.
            logger.warning_once(f"{inputs.himtok_row}: {error}: the sample is skipped")
            raise
        return encoded

    def _keep_masks(self, encoded: dict[str, Any] | list, inputs: Any) -> None:
        """Pass the sample's masks on to the collator."""
        masks = getattr(inputs, "himtok_masks", None)
        if not self.is_training or masks is None or not masks["starts"]:
            return
        if isinstance(encoded, list):
            raise ValueError("truncation_strategy: got 'split' with masks, expected 'raise', 'left' or 'right'")
        self._check_has_ids(encoded)
        self._check_uncut(encoded["input_ids"], masks)
        if self._defers_encoding:
            encoded[SAMPLE_MASKS_KEY] = masks

    def _check_has_ids(self, encoded: dict[str, Any]) -> None:
        if encoded.get("input_ids") is None:
            raise ValueError(
                f"template {self.template_meta.template_type!r}: got {sorted(encoded)} without input_ids, expected "
                "input_ids to write mask codes into: this base model cannot learn masks"
            )

    def _check_uncut(self, input_ids: list[int], masks: dict[str, Any]) -> None:
        from swift.template import MaxLengthError

        vocabulary, k = self.masks.vocabulary, self.masks.num_mask_tokens
        ids = np.asarray(input_ids)
        starts, ends = np.flatnonzero(ids == vocabulary.start_id), np.flatnonzero(ids == vocabulary.end_id)
        written = len(masks["starts"])  # a sampled answer, appended as token ids, may have more masks
        own = starts[:written][np.asarray(masks["starts"], bool)] if len(starts) >= written else None
        if own is None or not np.isin(own + k + 1, ends).all():
            # ms-swift skips the sample, as any that is too long: the model must not learn half a mask.
            raise MaxLengthError(f"max_length={self.max_length} truncates a mask")

    # ----- a batch

    def _data_collator(self, batch: list[dict[str, Any]], *, padding_to: int | None = None) -> dict[str, Any]:
        samples = [masks for sample in batch for masks in _list_sample_masks(sample)]
        collated = super()._data_collator(batch, padding_to=padding_to)
        if samples:
            self._check_has_ids(collated)
            masks = self.masks
            collated.update(
                collate_masks(
                    samples, collated["input_ids"], collated.get("labels"), masks.vocabulary, masks.num_mask_tokens
                )
            )
        return collated

    def packing_row(self, row: list[dict[str, Any]]) -> dict[str, Any]:
        packed = super().packing_row(row)
        packed[SAMPLE_MASKS_KEY] = [masks for sample in row for masks in _list_sample_masks(sample)]
        return packed

    def print_inputs(self, inputs: dict[str, Any]) -> None:
        super().print_inputs({key: value for key, value in inputs.items() if key != SAMPLE_MASKS_KEY})

    # ----- generation

    def pre_forward_hook(self, model: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if not self.is_training:
            self.masks.generation.set_prompt_ids(kwargs.get("input_ids"))
        return super().pre_forward_hook(model, args, kwargs)

    def prepare_generate_kwargs(self, generate_kwargs: dict[str, Any], *, model: Any = None) -> dict[str, Any]:
        generate_kwargs = super().prepare_generate_kwargs(generate_kwargs, model=model)
        return self.masks.generation.prepare(generate_kwargs, self.tokenizer)

    def generate(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().generate(model, *args, **kwargs)
        except Exception as error:
            stream = getattr(kwargs.get("streamer"), "queue", None)
            if stream is None:
                raise
            stream.put(error)  # patches/deploying.py raises it in the thread that reads the stream

    def get_generate_ids(self, generate_ids: Any, num_prompt_tokens: int) -> Any:
        ids = super().get_generate_ids(generate_ids, num_prompt_tokens)
        self.masks.generation.set_generated_ids(ids)
        return ids


def _parse_column(inputs: Any) -> MaskColumn:
    masks = inputs.extra_kwargs.get("masks")
    return MaskColumn.parse([] if masks is None else masks, inputs.extra_kwargs.get(CODES))


def _list_sample_masks(sample: dict[str, Any]) -> list[SampleMasks]:
    """Return the masks of an encoded sample, or of several in a packed one."""
    masks = sample.get(SAMPLE_MASKS_KEY)
    return [] if masks is None else masks if isinstance(masks, list) else [masks]


def compose_mask_template(template_class: Any) -> type:
    """Return the template class with `MaskTemplateMixin` in front; the same class for the same argument.

    The name of the new class contains that of `template_class`, because a spawned data-loader worker unpickles it by
    name, see `__getattr__`.

    Raises:
        ValueError: the base model is an encoder-decoder (Florence) or a diffusion model (DiffusionGemma).
    """
    if issubclass(template_class, MaskTemplateMixin):
        return template_class
    if template_class.is_encoder_decoder:
        # The collator searches input_ids for the answer's masks, and the loss needs next-token logits.
        raise ValueError(
            f"{template_class.__name__}: got a base model whose input_ids do not contain the answer, expected a "
            "decoder-only one"
        )
    name = f"{CLASS_PREFIX}{template_class.__module__.replace('.', '__DOT__')}__CLASS__{template_class.__qualname__}"
    module = sys.modules[__name__]
    if name not in module.__dict__:
        namespace = {"__module__": __name__, "__qualname__": name, "__doc__": template_class.__doc__}
        module.__dict__[name] = type(name, (MaskTemplateMixin, template_class), namespace)
    return module.__dict__[name]


def __getattr__(name: str) -> type:
    """Compose a template class by its name, for unpickling."""
    if not name.startswith(CLASS_PREFIX):
        raise AttributeError(name)
    import importlib

    module, _, qualname = name.removeprefix(CLASS_PREFIX).partition("__CLASS__")
    return compose_mask_template(getattr(importlib.import_module(module.replace("__DOT__", ".")), qualname))
