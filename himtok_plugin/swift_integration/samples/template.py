"""ms-swift's template of any base model, with masks in its rows.

Contract: `compose_mask_template(template_class)` is that class with `<mask>` understood in every turn. In training, a
mask whose codes are not known yet is written as k placeholder codes and its square travels along, so that the step can
encode the whole batch on the device; at inference it is encoded on the spot. Does not know which base model it is.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from swift.utils import get_logger, patch_getattr

from himtok_plugin.data.samples import CODES, load_squares
from himtok_plugin.mask_text import MASK_PLACEHOLDER, MASK_START, codes_to_text, count_placeholders
from himtok_plugin.swift_integration.model.mask_runtime import MaskRuntime

from .mask_batch import ENCODED, collate_masks, encoded_masks
from .mask_column import MaskColumn
from .sample_images import _image_name, _naming_images, read_image_size

logger = get_logger()
CLASS_PREFIX = "MaskTemplate__"


class MaskTemplateMixin:
    """Stands in front of a `swift.template.Template` class."""

    @property
    def masks(self) -> MaskRuntime:
        """The run's mask tokenizer and vocabulary, found by the model loader and kept at the text tokenizer."""
        return self.tokenizer.himtok

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a spawned data-loader worker: ms-swift lets processors answer for their tokenizers, but only where it
        loaded them itself."""
        self.__dict__.update(state)
        if hasattr(self.processor, "tokenizer"):
            patch_getattr(type(self.processor), "tokenizer")

    @property
    def _defers_encoding(self) -> bool:
        """Whether codes are computed in the training step; else every row gets its codes here."""
        return self.is_training and self.masks.trainer_encodes

    # ----- a row

    def _preprocess_inputs(self, inputs) -> None:
        column = _column_of(inputs)
        # From here on, `images` holds pictures without a name, and some templates resize them (MAX_PIXELS, Qwen).
        inputs.himtok_row, inputs.himtok_images = column.name, [_image_name(image) for image in inputs.images]
        with _naming_images(inputs):
            inputs.himtok_size = read_image_size(inputs.images[0]) if inputs.images else None
            super()._preprocess_inputs(inputs)
        inputs.himtok_masks = self._write_masks(inputs, column)

    def _rlhf_encode(self, inputs, check_rejected: bool = True) -> dict[str, Any]:
        """Both answers of a pair: the row's masks are the chosen one's first, then those of the rejected one's own."""
        if inputs.rejected is not None:
            if self.mode == "kto":
                # An answer about another image, for which patches/rows.py has put the masks together.
                inputs.rejected.himtok_any_size = True
            else:
                self._share_masks(inputs.chosen, inputs.rejected)
        return super()._rlhf_encode(inputs, check_rejected)

    def _share_masks(self, chosen, rejected) -> None:
        column = _column_of(chosen)
        codes = self._known_codes(column, len(column.masks))
        used = sum(map(count_placeholders, _texts(chosen)))
        shared = _shared_placeholders(chosen, rejected)
        further = sum(map(count_placeholders, _texts(rejected))) - shared
        if used + further != len(column.masks):
            raise ValueError(
                f"{column.name}: messages hold {used} {MASK_PLACEHOLDER}, the rejected answer {further} more, masks "
                f"holds {len(column.masks)}: expected one mask for each"
            )
        for inputs, numbers in ((chosen, range(used)), (rejected, [*range(shared), *range(used, used + further)])):
            own = [column.masks[i] for i in numbers], [codes[i] for i in numbers]
            inputs.extra_kwargs["masks"] = MaskColumn(*own, column.row, dataset=column.dataset)

    def _write_masks(self, inputs, column: MaskColumn) -> dict[str, Any]:
        """Replace every `<mask>` of the row by mask text; returns what the collator needs."""
        texts = _texts(inputs)
        placeholders = sum(map(count_placeholders, texts))
        answered = not self.is_training and bool(inputs.messages) and inputs.messages[-1]["role"] == "assistant"
        # At inference the last answer is cut off and its masks stay unread, as where answers are sampled in training.
        all_used = self._defers_encoding or answered or self.mode in ("rlhf", "kto")
        if placeholders > len(column.masks) or (placeholders < len(column.masks) and all_used):
            raise ValueError(
                f"{column.name}: messages hold {placeholders} {MASK_PLACEHOLDER}, masks holds {len(column.masks)}: "
                "expected one mask for each"
            )
        sources, known = column.masks[:placeholders], self._known_codes(column, placeholders)
        squares = None
        if not self._defers_encoding:
            known = self._encode_now(inputs, sources, known, column.name)
        elif None in known or self.masks.settings.trains_on_masks:
            squares = self._squares(inputs, dict(enumerate(sources)), column.name)
        blank = [0] * self.masks.num_mask_tokens
        written = iter([codes_to_text(blank if codes is None else codes) for codes in known])
        starts: list[bool] = []
        for i, text in enumerate(texts):
            pieces = text.split(MASK_PLACEHOLDER)
            starts += [False] * pieces[0].count(MASK_START)
            texts[i] = pieces[0]
            for piece in pieces[1:]:
                starts += [True] + [False] * piece.count(MASK_START)
                texts[i] += next(written) + piece
        _put_texts(inputs, texts)
        return encoded_masks(starts, squares, known)

    def _known_codes(self, column: MaskColumn, count: int) -> list[list[int] | None]:
        if column.codes is None:
            return [None] * count
        if len(column.codes) != len(column.masks):
            raise ValueError(
                f"{column.name}: mask_codes holds {len(column.codes)} entries, masks holds {len(column.masks)}"
            )
        k, size = self.masks.num_mask_tokens, self.masks.codebook_size
        for i, codes in enumerate(column.codes):
            if codes is None:
                continue
            if len(codes) != k:
                raise ValueError(f"{column.name}: mask_codes[{i}] has {len(codes)} codes, expected {k}")
            wrong = next((c for c in codes if isinstance(c, bool) or not isinstance(c, int) or not 0 <= c < size), None)
            if wrong is not None:
                raise ValueError(f"{column.name}: mask_codes[{i}] holds {wrong!r}, expected integers 0 to {size - 1}")
        return list(column.codes[:count])

    def _encode_now(self, inputs, sources: list, known: list, name: str) -> list[list[int]]:
        missing = [i for i, codes in enumerate(known) if codes is None]
        if not missing:
            return known
        squares = torch.from_numpy(self._squares(inputs, {i: sources[i] for i in missing}, name)).float() / 255
        encoded = self.masks.encode(squares).tolist()
        known = list(known)
        for i, codes in zip(missing, encoded, strict=True):
            known[i] = codes
        return known

    def _squares(self, inputs, sources: dict[int, Any], name: str) -> np.ndarray:
        """uint8 (m, s, s); every mask must have the size of the row's first image, where there is one."""
        size = None if getattr(inputs, "himtok_any_size", False) else inputs.himtok_size
        return load_squares(sources, self.masks.image_size, size, name)

    def _encode_truncated(self, inputs) -> dict[str, Any]:
        from swift.template import MaxLengthError

        try:
            with _naming_images(inputs):  # some templates read their images only here
                encoded = super()._encode_truncated(inputs)
            self._keep_masks(encoded, inputs)
        except MaxLengthError as error:
            # Such rows are dropped without a word, and a data set of long answers would melt away unseen.
            logger.warning_once(f"{inputs.himtok_row}: {error}: the row is dropped")
            raise
        return encoded

    def _keep_masks(self, encoded: dict[str, Any] | list, inputs) -> None:
        """Hand the row's masks on to the collator."""
        masks = getattr(inputs, "himtok_masks", None)
        if not self.is_training or masks is None or not masks["starts"]:
            return
        if isinstance(encoded, list):
            raise ValueError("truncation_strategy='split': got a row with masks, expected 'raise', 'left' or 'right'")
        self._check_has_ids(encoded)
        self._check_uncut(encoded["input_ids"], masks)
        if self._defers_encoding:
            encoded[ENCODED] = masks

    def _check_has_ids(self, encoded: dict[str, Any]) -> None:
        if encoded.get("input_ids") is None:
            raise ValueError(
                f"template {self.template_meta.template_type!r}: hands on {sorted(encoded)} without input_ids, which "
                "mask codes are written into: this base model cannot learn masks"
            )

    def _check_uncut(self, input_ids: list[int], masks: dict[str, Any]) -> None:
        from swift.template import MaxLengthError

        vocabulary, k = self.masks.vocabulary, self.masks.num_mask_tokens
        ids = np.asarray(input_ids)
        starts, ends = np.flatnonzero(ids == vocabulary.start_id), np.flatnonzero(ids == vocabulary.end_id)
        written = len(masks["starts"])  # a sampled answer, which comes as ids, may hold further ones behind them
        own = starts[:written][np.asarray(masks["starts"], bool)] if len(starts) >= written else None
        if own is None or not np.isin(own + k + 1, ends).all():
            # Dropped like any row that is too long: half a mask must not be learned.
            raise MaxLengthError(f"a mask is cut by max_length={self.max_length}")

    # ----- a batch

    def _data_collator(self, batch: list[dict[str, Any]], *, padding_to: int | None = None) -> dict[str, Any]:
        rows = [masks for row in batch for masks in _masks_of(row)]
        collated = super()._data_collator(batch, padding_to=padding_to)
        if rows:
            self._check_has_ids(collated)
            masks = self.masks
            collated.update(
                collate_masks(
                    rows, collated["input_ids"], collated.get("labels"), masks.vocabulary, masks.num_mask_tokens
                )
            )
        return collated

    def packing_row(self, row: list[dict[str, Any]]) -> dict[str, Any]:
        packed = super().packing_row(row)
        packed[ENCODED] = [masks for part in row for masks in _masks_of(part)]
        return packed

    def print_inputs(self, inputs: dict[str, Any]) -> None:
        super().print_inputs({key: value for key, value in inputs.items() if key != ENCODED})

    # ----- generation

    def pre_forward_hook(self, model, args, kwargs):
        if not self.is_training:
            self.masks.generation.set_prompt_ids(kwargs.get("input_ids"))
        return super().pre_forward_hook(model, args, kwargs)

    def prepare_generate_kwargs(self, generate_kwargs: dict[str, Any], *, model=None) -> dict[str, Any]:
        generate_kwargs = super().prepare_generate_kwargs(generate_kwargs, model=model)
        return self.masks.generation.prepare(generate_kwargs, self.tokenizer)

    def generate(self, model, *args, **kwargs):
        try:
            return super().generate(model, *args, **kwargs)
        except Exception as error:
            stream = getattr(kwargs.get("streamer"), "queue", None)
            if stream is None:
                raise
            stream.put(error)  # who reads the stream does so on another thread

    def get_generate_ids(self, generate_ids, num_prompt_tokens: int):
        ids = super().get_generate_ids(generate_ids, num_prompt_tokens)
        self.masks.generation.set_generated_ids(ids)
        return ids


def _column_of(inputs) -> MaskColumn:
    masks = inputs.extra_kwargs.get("masks")
    return MaskColumn.parse([] if masks is None else masks, inputs.extra_kwargs.get(CODES))


def _texts(inputs) -> list[str]:
    """What may hold `<mask>`, in order: the system message, which ms-swift keeps apart, and every turn that is text."""
    system = [inputs.system] if isinstance(inputs.system, str) else []
    return system + [m["content"] for m in inputs.messages if isinstance(m.get("content"), str)]


def _put_texts(inputs, texts: list[str]) -> None:
    """The inverse of `_texts`."""
    following = iter(texts)
    if isinstance(inputs.system, str):
        inputs.system = next(following)
    for message in inputs.messages:
        if isinstance(message.get("content"), str):
            message["content"] = next(following)


def _shared_placeholders(chosen, rejected) -> int:
    """How many `<mask>` stand before the two conversations part, with their last answers at the latest."""
    count = 0
    for one, other in zip(_texts(chosen)[:-1], _texts(rejected)[:-1], strict=False):
        if one != other:
            break
        count += count_placeholders(one)
    return count


def _masks_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    masks = row.get(ENCODED)
    return [] if masks is None else masks if isinstance(masks, list) else [masks]


def compose_mask_template(template_class: type) -> type:
    """The template class with `MaskTemplateMixin` in front; the same class for the same argument.

    It is found again by name in a spawned data-loader worker, so its name says which class it was made of.

    Raises:
        ValueError: the base model is an encoder-decoder (Florence) or a diffusion model (DiffusionGemma).
    """
    if issubclass(template_class, MaskTemplateMixin):
        return template_class
    if template_class.is_encoder_decoder:
        # Masks of an answer are looked for among the ids that go into the model, and predicted one after the other.
        raise ValueError(
            f"{template_class.__name__}: got a base model whose answer is no continuation of its input_ids, expected a "
            "decoder-only one"
        )
    name = f"{CLASS_PREFIX}{template_class.__module__.replace('.', '__DOT__')}__CLASS__{template_class.__qualname__}"
    module = sys.modules[__name__]
    if name not in module.__dict__:
        namespace = {"__module__": __name__, "__qualname__": name, "__doc__": template_class.__doc__}
        module.__dict__[name] = type(name, (MaskTemplateMixin, template_class), namespace)
    return module.__dict__[name]


def __getattr__(name: str) -> type:
    """Unpickling a template asks for its class by name."""
    if not name.startswith(CLASS_PREFIX):
        raise AttributeError(name)
    import importlib

    module, _, qualname = name.removeprefix(CLASS_PREFIX).partition("__CLASS__")
    return compose_mask_template(getattr(importlib.import_module(module.replace("__DOT__", ".")), qualname))
