"""Loading: templates, models, and base models whose code in ms-swift expects an earlier transformers."""

from __future__ import annotations

from copy import copy
from functools import wraps

from .replacing import around

ENGINE_MODES = ("vllm", "lmdeploy", "sglang")  # of a template: the engine expands the images of a prompt


def compose_templates() -> None:
    """What: every multimodal base model's template class gets `MaskTemplateMixin` as its first base class.
    Why: a plugin can only register templates under new names, and the user would have to choose one per base model.
    Goes when: a plugin can extend existing templates.
    Upstream: none known (looked 2026-11-28).
    """
    import swift.template as package
    import swift.template.register as register

    from himtok_plugin.swift_integration.samples.template import compose_mask_template

    def get_template_meta(original, model_info, model_meta, template_type=None):
        meta = original(model_info, model_meta, template_type)
        if model_meta is None or not model_meta.is_multimodal:
            return meta
        meta = copy(meta)
        meta.template_cls = compose_mask_template(meta.template_cls)
        return meta

    for module in (register, package):
        around(module, "get_template_meta")(get_template_meta)


def extend_models() -> None:
    """What: `extend_loaded_model` runs after ms-swift has added the tokens of `--new_special_tokens`.
    Why: that option adds special tokens, and servers strip those from their output.
    Goes when: ms-swift adds non-special tokens, and its model loaders take a callback.
    Upstream: modelscope/ms-swift#6330 (asks for tokens that are not special).
    """
    from swift.model.register import ModelLoader

    from himtok_plugin.swift_integration.model.model_extension import extend_loaded_model

    @around(ModelLoader, "_add_new_special_tokens")
    def add_mask_tokens_as_well(original, self, model, processor, config):
        original(self, model, processor, config)
        extend_loaded_model(self, model, processor, config)


def mark_gemma3_image_tokens() -> None:
    """What: `token_type_ids` of Gemma 3 mark the image tokens, which attend to each other in both directions.
    Why: ms-swift marks `processor.image_token_id`, which in transformers 5.19 is the id of the start-of-image token.
    Image tokens would get causal attention, unlike in Gemma's own training and in every other engine.
    Goes when: ms-swift marks the text tokenizer's `image_token_id`.
    Upstream: none known (looked 2026-11-28).
    """
    from swift.template.templates.gemma import Gemma3VisionTemplate

    @around(Gemma3VisionTemplate, "_encode")
    def encode(original, self, inputs):
        encoded = original(self, inputs)
        image_token_id = self.tokenizer.image_token_id
        encoded["token_type_ids"] = [int(token == image_token_id) for token in encoded["input_ids"]]
        return encoded


def join_gemma3_newlines() -> None:
    """What: the line breaks around an image of Gemma 3 and those of the text beside it are tokenized together.
    Why: up to 31 line breaks are one token of Gemma. ms-swift tokenizes those of the image apart, so that one
    and two stand where Gemma's own processor and vLLM have three.
    Goes when: ms-swift tokenizes the text and the image's line breaks together.
    Upstream: none known (looked 2026-11-28).
    """
    from swift.template.templates.gemma import Gemma3VisionTemplate

    newlines = "\n\n"  # on both sides of the image tokens in `Gemma3Processor.full_image_sequence`

    @around(Gemma3VisionTemplate, "replace_tag")
    def replace_tag(original, self, media_type, index, inputs):
        tag = original(self, media_type, index, inputs)
        return tag if self.mode in ENGINE_MODES else [newlines, *tag, newlines]

    @around(Gemma3VisionTemplate, "_encode")
    def encode(original, self, inputs):
        encoded = original(self, inputs)
        if not inputs.images:
            return encoded
        count = len(self._tokenize(newlines))
        doubled: set[int] = set()  # positions of those that the original has added
        for i, token in enumerate(encoded["input_ids"]):
            if token == self.boi_token_id:
                doubled.update(range(i - count, i))
            elif token == self.tokenizer.eoi_token_id:
                doubled.update(range(i + 1, i + 1 + count))
        for name in ("input_ids", "labels", "loss_scale", "token_type_ids"):
            if encoded.get(name) is not None:
                encoded[name] = [value for i, value in enumerate(encoded[name]) if i not in doubled]
        return encoded


def break_lines_behind_internvl_images() -> None:
    """What: under vLLM, prompts of InternVL have a line break behind each image, as in training.
    Why: in vLLM mode, ms-swift's template writes the image alone, and vLLM adds none. A quarter of the answers changed.
    Goes when: `InternvlhfTemplate.replace_tag` writes the line break in every mode.
    Upstream: none known (looked 2026-11-28).
    """
    from swift.template.templates.internvl import InternvlhfTemplate

    @around(InternvlhfTemplate, "replace_tag")
    def replace_tag(original, self, media_type, index, inputs):
        tag = original(self, media_type, index, inputs)
        return [*tag, "\n"] if media_type == "image" and self.mode == "vllm" else tag


def concatenate_gemma4_features() -> None:
    """What: Gemma 4's features of several images or videos are one tensor.
    Why: ms-swift's forward pass of Gemma 4 expects the single tensor of transformers 5.14; since 5.15, transformers
    returns a list with one tensor per image.
    Goes when: ms-swift's forward pass concatenates them.
    Upstream: huggingface/transformers#46405 (one tensor per image).
    """
    import swift.model.models.gemma as gemma
    import torch

    def concatenate_output(get_features):
        @wraps(get_features)
        def get_concatenated_features(*args, **kwargs):
            output = get_features(*args, **kwargs)
            if isinstance(output.pooler_output, (tuple, list)):
                output.pooler_output = torch.cat(tuple(output.pooler_output))
            return output

        return get_concatenated_features

    @around(gemma, "_patch_gemma4_forward")
    def patch_and_concatenate(original, model, *args, **kwargs):
        original(model, *args, **kwargs)
        for name in ("get_image_features", "get_video_features"):
            setattr(model, name, concatenate_output(getattr(model, name)))  # on the instance, not its class
