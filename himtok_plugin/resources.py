"""Paths of the files that ship with the package, in a source tree or installed.

`config_path("stage1_tiny_full")` is a YAML file for `swift sft`. `default_checkpoint()` and `default_mask_tokenizer()`
are the folders that `--model default` and `--mask_tokenizer default` stand for. The configs are in `swift_configs/` of
the repository, which setup.py installs as `himtok_plugin/swift_configs/`.
"""

from pathlib import Path

SIDECAR_FOLDER = "mask_tokenizer"  # subfolder of every LMM checkpoint that holds its mask tokenizer
_PACKAGE = Path(__file__).resolve().parent
# The source tree first: a `himtok_plugin/swift_configs` in it would be left over from a build.
_CONFIG_FOLDERS = (_PACKAGE.parent / "swift_configs", _PACKAGE / "swift_configs")
_DEFAULT_CHECKPOINT = _PACKAGE / "pretrained" / "lmm"


def config_folder() -> Path:
    """Folder of the shipped ms-swift configs."""
    in_source_tree, installed = _CONFIG_FOLDERS
    # A folder swift_configs in site-packages would belong to another package; only the repository has setup.py.
    if in_source_tree.is_dir() and (_PACKAGE.parent / "setup.py").is_file():
        return in_source_tree
    return installed


def config_names() -> list[str]:
    """Sorted names of the shipped configs, without `.yaml`."""
    return sorted(path.stem for path in config_folder().glob("*.yaml"))


def config_path(name: str) -> Path:
    """Path of a shipped config.

    Args:
        name: with or without `.yaml`.
    Raises:
        ValueError: there is no such config.
    """
    stem = name.removesuffix(".yaml")
    if stem not in config_names():
        raise ValueError(f"config: got {name!r}, expected one of {config_names()} (in {config_folder()})")
    return config_folder() / f"{stem}.yaml"


def default_checkpoint() -> Path:
    """Folder of the LMM checkpoint that ships with the package.

    Raises:
        ValueError: this build ships no checkpoint.
    """
    if not _DEFAULT_CHECKPOINT.is_dir():
        raise ValueError("this build ships no checkpoint: pass one with --model")
    return _DEFAULT_CHECKPOINT


def default_mask_tokenizer() -> Path:
    """Folder of the mask tokenizer that ships with the package, which belongs to the shipped LMM.

    Raises:
        ValueError: this build ships no mask tokenizer.
    """
    folder = _DEFAULT_CHECKPOINT / SIDECAR_FOLDER
    if not folder.is_dir():
        raise ValueError("this build ships no default mask tokenizer: pass one with --mask_tokenizer")
    return folder
