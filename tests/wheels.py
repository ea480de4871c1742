"""Wheels of this package, built from a copy of the repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from paths import ROOT

from himtok_plugin.active_plugins import ACTIVE_PLUGINS_VARIABLE

HOOKS = ("himtok_plugin_startup.pth", "himtok_plugin_startup.start")


def run_outside(command: list, **options) -> subprocess.CompletedProcess:
    """Run a command that does not know this process's PYTHONPATH and plugins."""
    environment = {name: os.environ[name] for name in os.environ if name not in ("PYTHONPATH", ACTIVE_PLUGINS_VARIABLE)}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=120, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def copy_source(folder: Path) -> Path:
    """Copy the repository into a new folder, because a build writes into it."""
    folder.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", *HOOKS):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder)
    for name in ("himtok_plugin", "swift_configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def build(source: Path, hook: str, folder: Path) -> Path:
    """Build a wheel into a folder by a hook of the build backend, `build_wheel` or `build_editable`."""
    code = f"import sys; from setuptools import build_meta; build_meta.{hook}(sys.argv[1])"
    run_outside([sys.executable, "-c", code, folder], cwd=source)
    return next(folder.glob("*.whl"))
