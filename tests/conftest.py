"""On the path by its presence, so that tests in subfolders find `tiny_models`; fixtures of several files."""

import gc
import os
from functools import cache

import pytest
import torch
import typer.main

from himtok_plugin import cli

# typer builds all forty commands anew at every call: 0.07 s, most of what a small `himtok prepare` costs.
typer.main.get_command = cache(typer.main.get_command)


@pytest.fixture(scope="session", autouse=True)
def one_thread_per_process():
    """Beside other processes of `pytest -n`, threads of one wait for those of another."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def settled_objects():
    """What is there before a module's tests is set aside from garbage collection.

    Every run of ms-swift ends with a full one, which takes half a second and more to find nothing among the objects of
    all the imported packages.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def himtok(capsys):
    """Run the command in this process: (exit status, stdout, stderr)."""

    def run(*arguments):
        capsys.readouterr()  # what fixtures printed
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run
