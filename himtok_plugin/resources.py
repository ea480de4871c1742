"""Where the files that ship beside the code are found, in a source tree and in an installed package alike.

Contract: `config_path("stage1_tiny_full")` is the YAML that `swift sft` can be started with, `default_checkpoint()` the
folder that `--model default` stands for, `default_mask_tokenizer()` the one that `--mask_tokenizer default` stands for.
The configs' one place is `swift_configs/` at the top of the repository; setup.py installs that folder as
`himtok_plugin/swift_configs/`.
Does not know: what a config says.
"""

from pathlib import Path

SIDECAR_FOLDER = "mask_tokenizer"  # in every checkpoint of an LMM, for the mask tokenizer that belongs to it
_PACKAGE = Path(__file__).resolve().parent
# The source tree first: a `himtok_plugin/swift_configs` beside it could only be a stale build product.
_CONFIG_FOLDERS = (_PACKAGE.parent / "swift_configs", _PACKAGE / "swift_configs")
_DEFAULT_CHECKPOINT = _PACKAGE / "pretrained" / "lmm"


def config_folder() -> Path:
    """The folder of the shipped ms-swift configs."""
    in_source_tree, installed = _CONFIG_FOLDERS
    # In site-packages, a neighbour called swift_configs would be somebody else's: only a repository has our setup.py.
    if in_source_tree.is_dir() and (_PACKAGE.parent / "setup.py").is_file():
        return in_source_tree
    return installed


def config_names() -> list[str]:
    """Names of the shipped configs, sorted, without `.yaml`."""
    return sorted(path.stem for path in config_folder().glob("*.yaml"))


def config_path(name: str) -> Path:
    """Path of a shipped config, named with or without `.yaml`."""
    stem = name.removesuffix(".yaml")
    if stem not in config_names():
        raise ValueError(f"config: got {name!r}, expected one of {config_names()} (in {config_folder()})")
    return config_folder() / f"{stem}.yaml"


def default_checkpoint() -> Path:
    """The folder of the segmenting LMM that ships with the package.

    Raises:
        ValueError: this build ships none.
    """
    if not _DEFAULT_CHECKPOINT.is_dir():
        raise ValueError("this build ships no checkpoint: name one with --model")
    return _DEFAULT_CHECKPOINT


def default_mask_tokenizer() -> Path:
    """The folder of the mask tokenizer that ships with the package: that of the LMM.

    Raises:
        ValueError: this build ships none.
    """
    folder = _DEFAULT_CHECKPOINT / SIDECAR_FOLDER
    if not folder.is_dir():
        raise ValueError("this build ships no default mask tokenizer: name one with --mask_tokenizer")
    return folder
