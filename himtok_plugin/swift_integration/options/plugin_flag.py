"""`--plugin` as a field of ms-swift's argument classes, whichever plugins are active.

Contract: `add_plugin_flag` adds the field `plugin` and keeps the paths of active plugins out of `args.json`, because
a checkpoint outlives the environment that trained it. startup.py calls it with each module that defines an argument
class, right after the module's execution. It is idempotent and imports nothing of ms-swift.

This is a patch, because ms-swift 4.6 has no hook. It can go when ms-swift finds plugins by name.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from himtok_plugin.active_plugins import active_plugins


@dataclass
class PluginFlag:
    """The option `--plugin`, a mix-in for ms-swift's `TemplateArguments`."""

    plugin: list[str] = field(
        default_factory=list,
        metadata={"help": "Names of installed plugins to use: entry points of the group swift.plugins."},
    )

    def __post_init__(self) -> None:
        if isinstance(self.plugin, str):
            self.plugin = [self.plugin]


def add_plugin_flag(module: ModuleType) -> None:
    """Extend the argument class that ms-swift's `module` defines."""
    if hasattr(module, "TemplateArguments"):
        extend_template_arguments(module, PluginFlag)
    if hasattr(module, "BaseArguments"):
        _import_active_plugins(module.BaseArguments)


def extend_template_arguments(
    module: ModuleType,
    mixin: Any,
    before_validation: Callable[[Any], None] = lambda args: None,
    after_unpickling: Callable[[Any], None] = lambda args: None,
) -> None:
    """Replace `TemplateArguments` in ms-swift's module `template_args` by a subclass that has the fields of `mixin`.

    This happens before any other module of ms-swift imports the class. `BaseArguments` calls
    `TemplateArguments.__post_init__` by name, and so runs the validation of `mixin`.

    Args:
        module: ms-swift's module that defines `TemplateArguments`.
        mixin: a dataclass with `__post_init__`; all its fields have defaults.
        before_validation: called with the arguments between ms-swift's `__post_init__` and that of `mixin`.
        after_unpickling: called with arguments that another process made; their `__post_init__` does not run here.
    Raises:
        RuntimeError: ms-swift has a field of the same name.
    """
    native: Any = module.TemplateArguments
    if issubclass(native, mixin):
        return
    taken = {f.name for f in fields(mixin)} & {f.name for f in fields(native)}
    if taken:
        raise RuntimeError(f"ms-swift has fields with the names of {mixin.__name__}, expected none: {sorted(taken)}")

    @dataclass
    class TemplateArguments(mixin, native):
        __doc__ = native.__doc__

        @wraps(native.__post_init__)
        def __post_init__(self) -> None:
            native.__post_init__(self)
            before_validation(self)
            mixin.__post_init__(self)

        def __setstate__(self, state: dict[str, Any]) -> None:
            # `swift app` and `swift eval` pickle complete arguments for the server that they start.
            self.__dict__.update(state)
            after_unpickling(self)

    # Pickle finds the class by this name.
    TemplateArguments.__module__ = native.__module__
    TemplateArguments.__qualname__ = native.__qualname__
    setattr(module, native.__name__, TemplateArguments)


def _import_active_plugins(base: Any) -> None:
    """Make ms-swift's `BaseArguments` import the active plugins from where they are now, without saving their paths."""
    if getattr(base, "_imports_active_plugins", False):
        return
    load_args_from_ckpt, import_plugins, save_args = (
        base.load_args_from_ckpt,
        base._import_external_plugins,
        base.save_args,
    )

    @wraps(load_args_from_ckpt)
    def load_args_from_ckpt_without_active_plugins(self: Any) -> None:
        # ms-swift reads `external_plugins` from a checkpoint only if the user has set none. Files of active plugins,
        # which startup.py has added, must not count: the checkpoint may need its other plugins.
        if getattr(self, "external_plugins", None):
            self.external_plugins = other_plugin_files(self.external_plugins)
        load_args_from_ckpt(self)

    @wraps(import_plugins)
    def import_active_plugins(self: Any) -> None:
        files = active_plugins()
        self.external_plugins = [*files.values(), *other_plugin_files(self.external_plugins)]
        self.plugin = list(files)
        import_plugins(self)

    @wraps(save_args)
    def save_args_without_active_plugins(self: Any, output_dir: str | None = None) -> None:
        files = self.external_plugins
        self.external_plugins = other_plugin_files(files)
        try:
            save_args(self, output_dir)
        finally:
            self.external_plugins = files

    base.load_args_from_ckpt = load_args_from_ckpt_without_active_plugins
    base._import_external_plugins = import_active_plugins
    base.save_args = save_args_without_active_plugins
    base._imports_active_plugins = True


def other_plugin_files(files: list[str] | str | None) -> list[str]:
    """Return `files` without those of the active plugins, also in other environments.

    A checkpoint may come from another environment and name the plugin's file there. A path with the same last three
    parts as an active plugin's (`himtok_plugin/plugin/himtok.py`) is that plugin, even if the file does not exist.
    """
    files = [files] if isinstance(files, str) else files or []
    endings = {Path(active).parts[-3:] for active in active_plugins().values()}
    return [file for file in files if Path(file).parts[-3:] not in endings]
