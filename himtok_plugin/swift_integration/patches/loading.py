"""Loading: templates, models, and bases that ms-swift wrote against an earlier transformers."""

from __future__ import annotations

from copy import copy
from functools import wraps

from .replacing import around


def compose_templates() -> None:
    """What: the template class that ms-swift chose for a multimodal base gets `MaskTemplateMixin` in front.
    Why: a plugin can register templates by name, but the user should not have to name another one per base.
    Goes when: templates can be extended without naming them.
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
    """What: `extend_loaded_model` runs after ms-swift added its own new special tokens.
    Why: `--new_special_tokens` adds special ones only, which servers strip from their output.
    Goes when: model loaders take a callback.
    """
    from swift.model.register import ModelLoader

    from himtok_plugin.swift_integration.model.model_extension import extend_loaded_model

    @around(ModelLoader, "_add_new_special_tokens")
    def add_mask_tokens_as_well(original, self, model, processor, config):
        original(self, model, processor, config)
        extend_loaded_model(self, model, processor, config)


def mark_image_tokens_of_gemma3() -> None:
    """What: Gemma 3's image tokens, and no other, are of the type of those that see each other.
    Why: ms-swift asks the processor for their id, which in transformers 5.19 answers with the token before them: images
    would be read from left to right here, as they were in no training before and are by no other engine.
    Goes when: ms-swift asks the text tokenizer.
    """
    from swift.template.templates.gemma import Gemma3VisionTemplate

    @around(Gemma3VisionTemplate, "_encode")
    def encode(original, self, inputs):
        encoded = original(self, inputs)
        image_token_id = self.tokenizer.image_token_id
        encoded["token_type_ids"] = [int(token == image_token_id) for token in encoded["input_ids"]]
        return encoded


def join_features_of_gemma4() -> None:
    """What: Gemma 4's features of several images or videos come as one tensor.
    Why: ms-swift's own forward pass of Gemma 4, written against transformers 5.6, expects that; 5.19 gives one each.
    Goes when: ms-swift's joins them.
    """
    import swift.model.models.gemma as gemma
    import torch

    def joined(get_features):
        @wraps(get_features)
        def get_joined_features(*args, **kwargs):
            output = get_features(*args, **kwargs)
            if isinstance(output.pooler_output, (tuple, list)):
                output.pooler_output = torch.cat(tuple(output.pooler_output))
            return output

        return get_joined_features

    @around(gemma, "_patch_gemma4_forward")
    def patch_and_join(original, model, *args, **kwargs):
        original(model, *args, **kwargs)
        for name in ("get_image_features", "get_video_features"):
            setattr(model, name, joined(getattr(model, name)))  # of this model, not of its class
