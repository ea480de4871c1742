"""ms-swift is extended before it is imported; data that the commands of the pages read; a server for its client."""

import importlib.util
import os
import shutil
import sys

import pytest
from paths import ROOT

sys.path.append(str(ROOT / "tests" / "swift_integration"))  # runs, servers

if importlib.util.find_spec("swift") is not None:
    from himtok_plugin import startup

    startup.activate("himtok")


@pytest.fixture(autouse=True)
def environment():
    """Every test leaves the environment as it found it; `datasets` puts a copy in the place of `os.environ`."""
    before, content = os.environ, dict(os.environ)
    yield
    os.environ = before  # noqa: B003 the mapping that was there, not a plain one
    os.environ.clear()
    os.environ.update(content)


@pytest.fixture(scope="session")
def documented_files(tmp_path_factory):
    from documented_files import write_documented_files

    return write_documented_files(tmp_path_factory.mktemp("documented_files"))


@pytest.fixture
def workspace(documented_files, tmp_path, monkeypatch):
    """The current folder: a fresh copy of all files that the pages name."""
    folder = tmp_path / "workspace"
    shutil.copytree(documented_files, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder
