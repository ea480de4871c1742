"""The plugin's options as fields of ms-swift's argument classes.

Contract: `extend_arguments` makes the fields of `HimTokArguments` fields of ms-swift's `TemplateArguments`, hence of
`SftArguments`, `InferArguments` and all others, and fills in what a checkpoint says about its own use. startup.py calls
it through the entry point `swift.plugin_arguments`; it is idempotent. ms-swift is not imported here but handed in, half
imported, module by module.

A patch, for want of a hook in ms-swift 4.6: it can go when ms-swift has an option group for plugins.
"""

from types import ModuleType
from typing import Any

from himtok_plugin.resources import default_checkpoint

from .arguments import DEFAULT, HimTokArguments, current_arguments, set_current_arguments
from .checkpoint_settings import apply_checkpoint_settings, refuse_unconverted
from .plugin_flag import extend_template_arguments


def extend_arguments(module: ModuleType) -> None:
    """Extend the argument class that `module` of ms-swift has just defined."""
    if hasattr(module, "TemplateArguments"):
        extend_template_arguments(module, HimTokArguments, apply_checkpoint_settings, _keep_unpickled)
    if hasattr(module, "BaseArguments"):
        _extend_base_arguments(module.BaseArguments)


def _keep_unpickled(args: Any) -> None:
    if current_arguments() is None:
        set_current_arguments(args)


def _extend_base_arguments(base: Any) -> None:
    """Let ms-swift's `BaseArguments` know the shipped checkpoint, the authors' files, exports and resumed runs."""
    if getattr(base, "_himtok_extended", False):
        return
    load_args_from_ckpt, import_plugins = base.load_args_from_ckpt, base._import_external_plugins

    def load_args_from_ckpt_for_use(self) -> None:
        given = {name: getattr(self, name, None) for name in ("quant_method", "quant_bits")}
        load_args_from_ckpt(self)
        if any(each.__name__ == "ExportArguments" for each in type(self).__mro__):
            # Of an export these say what it is to make, not what its base was loaded in: without this, a merged QLoRA
            # adapter would be quantised, and pushing one to the hub would be no push.
            vars(self).update(given)

    def import_plugins_and_find_model(self) -> None:
        refuse_unconverted(getattr(self, "model", None))
        if getattr(self, "model", None) == DEFAULT:
            self.model = str(default_checkpoint())
        resumed = getattr(self, "resume_from_checkpoint", None)
        if resumed and getattr(self, "tuner_type", None) == "full":
            # ms-swift leaves the weights to transformers' trainer, which passes over parameters whose names a
            # checkpoint has changed, as those of composite models: the run would go on from the base model, unseen.
            self.model = resumed
        import_plugins(self)

    base.load_args_from_ckpt = load_args_from_ckpt_for_use
    base._import_external_plugins = import_plugins_and_find_model
    base._himtok_extended = True
