"""`--plugin` as a field of ms-swift's argument classes, whichever plugins are active.

Contract: `extend_arguments` adds the field `plugin`, and keeps the paths of active plugins out of `args.json`, because
a checkpoint outlives the environment in which it was trained. Called by startup.py, idempotent. ms-swift is not
imported here but handed in, half imported, module by module.

A patch, for want of a hook in ms-swift 4.6: it can go when ms-swift finds plugins by name.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from himtok_plugin.active_plugins import active_plugins


@dataclass
class PluginFlag:
    """A mix-in for ms-swift's `TemplateArguments`."""

    plugin: list[str] = field(
        default_factory=list,
        metadata={"help": "Installed plugins to use, by name: entry points of the group swift.plugins."},
    )

    def __post_init__(self) -> None:
        if isinstance(self.plugin, str):
            self.plugin = [self.plugin]


def extend_arguments(module: ModuleType) -> None:
    """Extend the argument class that `module` of ms-swift has just defined."""
    if hasattr(module, "TemplateArguments"):
        extend_template_arguments(module, PluginFlag)
    if hasattr(module, "BaseArguments"):
        _extend_base_arguments(module.BaseArguments)


def extend_template_arguments(
    module: ModuleType,
    mixin: type,
    between: Callable[[Any], None] = lambda args: None,
    unpickled: Callable[[Any], None] = lambda args: None,
) -> None:
    """Replace `TemplateArguments` in ms-swift's module `template_args` by one with the fields of `mixin` as well.

    Done before any other module of ms-swift sees the class. `BaseArguments` calls `TemplateArguments.__post_init__` by
    name, which is how the mix-in's validation runs.

    Args:
        mixin: a dataclass whose fields all have defaults.
        between: called with the arguments after ms-swift's `__post_init__` and before that of `mixin`.
        unpickled: called with arguments that another process made: they do not pass `__post_init__`.
    """
    native = module.TemplateArguments
    if issubclass(native, mixin):
        return
    taken = {f.name for f in fields(mixin)} & {f.name for f in fields(native)}
    if taken:
        raise RuntimeError(f"this version of ms-swift has fields of its own with our names: {sorted(taken)}")

    @dataclass
    class TemplateArguments(mixin, native):
        __doc__ = native.__doc__

        def __post_init__(self) -> None:
            native.__post_init__(self)
            between(self)
            mixin.__post_init__(self)

        def __setstate__(self, state: dict[str, Any]) -> None:
            # The server that `swift app` and `swift eval` spawn gets its arguments ready-made.
            self.__dict__.update(state)
            unpickled(self)

    # Pickled by name, as when ms-swift hands arguments to a spawned process.
    TemplateArguments.__module__ = native.__module__
    TemplateArguments.__qualname__ = native.__qualname__
    module.TemplateArguments = TemplateArguments


def _extend_base_arguments(base: Any) -> None:
    """Make ms-swift's `BaseArguments` import the active plugins from where they are now, and save no path to them."""
    if getattr(base, "_knows_active_plugins", False):
        return
    load_args_from_ckpt, import_plugins, save_args = (
        base.load_args_from_ckpt,
        base._import_external_plugins,
        base.save_args,
    )

    def load_args_from_ckpt_without_active_plugins(self) -> None:
        # ms-swift takes `external_plugins` from a checkpoint only if none are given. Ours should not count as given:
        # the user's other plugins are needed to load the checkpoint.
        if getattr(self, "external_plugins", None):
            self.external_plugins = other_plugin_files(self.external_plugins)
        load_args_from_ckpt(self)

    def import_active_plugins(self) -> None:
        files = active_plugins()
        self.external_plugins = [*files.values(), *other_plugin_files(self.external_plugins)]
        self.plugin = list(files)
        import_plugins(self)

    def save_args_without_active_plugins(self, output_dir: str | None = None) -> None:
        files = self.external_plugins
        self.external_plugins = other_plugin_files(files)
        try:
            save_args(self, output_dir)
        finally:
            self.external_plugins = files

    base.load_args_from_ckpt = load_args_from_ckpt_without_active_plugins
    base._import_external_plugins = import_active_plugins
    base.save_args = save_args_without_active_plugins
    base._knows_active_plugins = True


def other_plugin_files(files: list[str] | str | None) -> list[str]:
    """`files` without those of the active plugins, wherever they lie.

    A checkpoint may have been trained in another environment, with the native `--external_plugins`: a path that ends
    like an active plugin's (`himtok_plugin/plugin/himtok.py`) is that plugin, even if the file is gone.
    """
    files = [files] if isinstance(files, str) else files or []
    endings = {Path(active).parts[-3:] for active in active_plugins().values()}
    return [file for file in files if Path(file).parts[-3:] not in endings]
