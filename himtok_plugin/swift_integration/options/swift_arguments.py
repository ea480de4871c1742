"""The plugin's options as fields of ms-swift's argument classes.

Contract: `add_options` adds the fields of `HimTokArguments` to ms-swift's `TemplateArguments`, the base class of
`SftArguments`, `InferArguments` and all other argument classes, and applies the settings of a checkpoint. It also
resolves `--model default` and the model of a resumed run. startup.py calls it through the entry-point group
`swift.plugin_arguments` with each module that defines an argument class, right after the module's execution. It is
idempotent and imports nothing of ms-swift. Trainings on CPUs get no half precision that nobody asked for.

This is a patch, because ms-swift 4.6 has no hook. It can go when ms-swift lets plugins register options.
"""

from functools import wraps
from types import ModuleType
from typing import Any

from himtok_plugin.resources import default_checkpoint

from .arguments import SHIPPED_CHECKPOINT, HimTokArguments
from .checkpoint_settings import apply_checkpoint_settings
from .cpu_precision import choose_precision_on_cpus
from .current_arguments import get_current_arguments, set_current_arguments
from .dataset_checks import check_dataset_files
from .deepspeed_checkpoints import has_deepspeed_shards_only
from .model_files import check_model_files, check_saved_arguments
from .plugin_flag import extend_template_arguments
from .unconverted_checkpoints import refuse_unconverted

MODEL_OF_SERVER = "model-of-the-server"  # of `swift app --base_url` without `--model`


def add_options(module: ModuleType) -> None:
    """Extend the argument class that ms-swift's `module` defines."""
    if hasattr(module, "TemplateArguments"):
        extend_template_arguments(module, HimTokArguments, apply_checkpoint_settings, _keep_unpickled)
    if hasattr(module, "BaseArguments"):
        _resolve_models(module.BaseArguments)


def _keep_unpickled(args: Any) -> None:
    """Make arguments from another process the current ones, unless this process has some already."""
    if get_current_arguments() is None:
        set_current_arguments(args)


def _resolve_models(base: Any) -> None:
    """Make ms-swift's `BaseArguments` resolve which model a command loads, and how an export is quantized."""
    if getattr(base, "_himtok_extended", False):
        return
    load_args_from_ckpt, import_plugins = base.load_args_from_ckpt, base._import_external_plugins

    @wraps(load_args_from_ckpt)
    def load_args_from_ckpt_except_quantization(self: Any) -> None:
        check_saved_arguments(getattr(self, "ckpt_dir", None))
        given = {name: getattr(self, name, None) for name in ("quant_method", "quant_bits")}
        load_args_from_ckpt(self)
        if any(each.__name__ == "ExportArguments" for each in type(self).__mro__):
            # In an export these options name the output's format, in args.json that of the loaded base model. With the
            # latter, ms-swift would quantize a merged QLoRA adapter, and would not push one to the hub.
            vars(self).update(given)

    @wraps(import_plugins)
    def import_plugins_and_resolve_model(self: Any) -> None:
        if getattr(self, "base_url", None) and getattr(self, "model", None) is None:
            self.model = MODEL_OF_SERVER  # ms-swift asks for a name, and loads nothing
        refuse_unconverted(getattr(self, "model", None))
        if getattr(self, "model", None) == SHIPPED_CHECKPOINT:
            self.model = str(default_checkpoint())
        resumed = getattr(self, "resume_from_checkpoint", None)
        if resumed and getattr(self, "tuner_type", None) == "full" and not has_deepspeed_shards_only(resumed):
            # ms-swift lets transformers' trainer load the weights, which silently skips parameters that are named
            # differently in the checkpoint, as in composite models: the run would continue from the base model.
            self.model = resumed
        check_model_files(self)
        for name in ("dataset", "val_dataset"):
            check_dataset_files(getattr(self, name, None) or (), name)
        import_plugins(self)

    init_mixed_precision = base._init_mixed_precision

    @wraps(init_mixed_precision)
    def init_mixed_precision_on_cpus(self: Any) -> None:
        choose_precision_on_cpus(self)
        init_mixed_precision(self)

    base._init_mixed_precision = init_mixed_precision_on_cpus
    base.load_args_from_ckpt = load_args_from_ckpt_except_quantization
    base._import_external_plugins = import_plugins_and_resolve_model
    base._himtok_extended = True
