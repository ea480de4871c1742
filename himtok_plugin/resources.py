"""Paths of the files that ship with the package: in a source tree, installed, or in a zip file.

`config_path("stage1_tiny_full")` is a YAML file for `swift sft`. `default_checkpoint()` and `default_mask_tokenizer()`
are the folders that `--model default` and `--mask_tokenizer default` stand for; `--mask_tokenizer demo` is the mask
tokenizer in the checkpoint, which knows generated scenes. The configs are in `swift_configs/` of
the repository, which setup.py installs as `himtok_plugin/swift_configs/`.

If the package is imported from a zip file, a wheel among them, `shipped_path` copies what is asked for to
`~/.cache/himtok_plugin` (`$XDG_CACHE_HOME`), because ms-swift and transformers read files and folders on disk only. The
copy has the same path in every process and every later run, and so a checkpoint may name it.

Contract: imports the standard library only.
"""

import hashlib
import os
import shutil
import tempfile
import zipfile
from functools import cache
from pathlib import Path

SIDECAR_FOLDER = "mask_tokenizer"  # subfolder of every LMM checkpoint that holds its mask tokenizer
PLUGIN_FILE = ("himtok_plugin", "plugin", "himtok.py")  # the end of its path, wherever the package is
_PACKAGE = Path(__file__).resolve().parent
# The source tree first: a `himtok_plugin/swift_configs` in it would be left over from a build.
_CONFIG_FOLDERS = (_PACKAGE.parent / "swift_configs", _PACKAGE / "swift_configs")
_DEFAULT_CHECKPOINT = _PACKAGE / "pretrained" / "lmm"
_DEFAULT_MASK_TOKENIZER = _PACKAGE / "pretrained" / SIDECAR_FOLDER


@cache
def shipped_path(path: Path) -> Path:
    """Return the path on disk of a file or folder that ships with a package.

    Args:
        path: beside a module; in a zip file, a path below that of the zip file.
    Returns:
        `path` itself, or the path of a copy if `path` is in a zip file.
    """
    archive = next((parent for parent in path.parents if parent.is_file()), None)
    if archive is None or not zipfile.is_zipfile(archive):
        return path
    inside = path.relative_to(archive).as_posix()
    with zipfile.ZipFile(archive) as opened:
        members = [
            member
            for member in opened.infolist()
            if (member.filename == inside or member.filename.startswith(f"{inside}/")) and not member.is_dir()
        ]
        if not members:
            return path  # it does not exist, which callers report
        content = sorted((member.filename, member.CRC, member.file_size) for member in members)
        folder = _copies_folder() / hashlib.sha256(repr(content).encode()).hexdigest()[:16]
        if not folder.is_dir():
            _extract(opened, members, folder)
    return folder / inside


@cache
def _copies_folder() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "himtok_plugin")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # whether it can be written to
    except OSError:  # no home folder, as in some containers
        return Path(_temporary_folder().name)
    return folder


@cache
def _temporary_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="himtok_plugin-")  # removed when this process ends


def _extract(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], folder: Path) -> None:
    """Copy members into a new folder. It appears when it is complete; another process may have made it meanwhile."""
    unfinished = tempfile.mkdtemp(dir=folder.parent)
    try:
        archive.extractall(unfinished, members)
        os.rename(unfinished, folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def config_folder() -> Path:
    """Folder of the shipped ms-swift configs."""
    in_source_tree, installed = _CONFIG_FOLDERS
    # A folder swift_configs in site-packages would belong to another package; only the repository has setup.py.
    if shipped_path(_PACKAGE.parent / "setup.py").is_file() and shipped_path(in_source_tree).is_dir():
        return shipped_path(in_source_tree)
    return shipped_path(installed)


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


def plugin_file() -> Path:
    """The file that ms-swift imports for `--plugin himtok`."""
    return shipped_path(_PACKAGE.joinpath(*PLUGIN_FILE[1:]))


def default_checkpoint() -> Path:
    """Folder of the LMM checkpoint that ships with the package.

    Raises:
        ValueError: this build ships no checkpoint.
    """
    folder = shipped_path(_DEFAULT_CHECKPOINT)
    if not folder.is_dir():
        raise ValueError("this build ships no checkpoint: pass one with --model")
    return folder


def default_mask_tokenizer() -> Path:
    """Folder of the mask tokenizer that ships with the package, for masks of real objects.

    The shipped LMM has another one, which is in its checkpoint.

    Raises:
        ValueError: this build ships no mask tokenizer.
    """
    folder = shipped_path(_DEFAULT_MASK_TOKENIZER)
    if not folder.is_dir():
        raise ValueError("this build ships no default mask tokenizer: pass one with --mask_tokenizer")
    return folder
