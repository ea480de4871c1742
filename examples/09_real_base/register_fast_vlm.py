"""Registers FastVLM models with ms-swift: a model type and a template.

    swift sft --plugin himtok --external_plugins register_fast_vlm.py --model BASE …

This file is what you write for a base model that ms-swift does not know. It knows nothing of masks: `--plugin himtok`
adds those to any registered model.
"""

from typing import Any

from swift.model import ModelLoader, ModelMeta, MultiModelKeys, register_model, register_model_arch
from swift.template import register_template
from swift.template.templates.llava import LlavaHfTemplate
from swift.template.templates.utils import ChatmlTemplateMeta
from torch import nn
from transformers import FastVlmForConditionalGeneration, PreTrainedModel

NAME = "fast_vlm"


class FastVlmLoader(ModelLoader):
    def get_model(self, model_dir: str, *args: Any, **kwargs: Any) -> PreTrainedModel:
        self.auto_model_cls = self.auto_model_cls or FastVlmForConditionalGeneration
        model = super().get_model(model_dir, *args, **kwargs)
        model.model.vision_tower.register_forward_pre_hook(keep_statistics)
        return model


def keep_statistics(vision_tower: nn.Module, _: Any) -> None:
    """Make the image network normalize by the statistics that it was trained with, also in training.

    Its batch normalization would otherwise use those of a few photographs, other ones than at inference.
    """
    vision_tower.eval()


# Where the parts lie, for --freeze_vit, --vit_lr, --target_modules all-linear, and for the mask tokens' embeddings.
register_model_arch(
    MultiModelKeys(
        NAME,
        language_model=["model.language_model", "lm_head"],
        aligner="model.multi_modal_projector",
        vision_tower="model.vision_tower",
    )
)
register_model(
    ModelMeta(
        NAME,
        [],  # no ids of a model hub: models of this type are recognized by their configuration
        FastVlmLoader,
        template=NAME,
        model_arch=NAME,
        architectures=["FastVlmForConditionalGeneration"],
        is_multimodal=True,
        tags=["vision"],
    )
)
# LLaVA's template class writes an image token per feature of the image, without labels: patch_size of the processor
# says how many there are.
register_template(ChatmlTemplateMeta(NAME, template_cls=LlavaHfTemplate))
