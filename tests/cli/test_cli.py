"""The `himtok` command: help and usage errors of all verbs."""

import os
import re
import subprocess
import sys
import time

import pytest
import typer.main

import himtok_plugin
from himtok_plugin.cli.common import VERB_ORDER, app


def assert_rejected(result, message):
    status, out, err = result
    assert status == 2 and not out
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err, err


def test_help_lists_the_verbs_and_is_fast_because_it_imports_nothing_heavy():
    code = (
        "import sys; from himtok_plugin import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'transformers', 'numpy', 'swift'} & set(sys.modules)"
    )
    begin = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert all(verb in result.stdout for verb in ("init", "convert", "encode", "decode", "eval"))
    assert time.monotonic() - begin < 10


def list_commands(group, path=()):
    """All commands below a group, as tuples of names; groups among them."""
    for name, command in group.commands.items():
        yield (*path, name)
        yield from list_commands(command, (*path, name)) if hasattr(command, "commands") else ()


COMMANDS = [(), *list_commands(typer.main.get_command(app))]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_in_which_nothing_is_cut(himtok, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = himtok(*command, "-h")
    assert status == 0 and "Usage: " in out and "-h, --help" in out
    description, _, commands = out.partition("Commands:")
    assert description.split("\n\n")[1].strip().endswith(".")  # a sentence about the command
    cut = [line for line in commands.splitlines() if line.endswith("...")]
    assert not cut


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("segmnt",), "No such command 'segmnt'"),
        (("init", "--seed", "3"), "Missing argument 'OUT'. (see `himtok init -h`)"),
        (("prepare", "--seed", "3"), "(see `himtok prepare -h`)"),
        (("init", "out", "--colour", "red"), "No such option"),
        (("init", "out", "--seed", "red"), "Invalid value for '--seed'"),
        (("init", "out", "--seed", "99999999999999999999"), "Invalid value for '--seed'"),
        (("decode", "text", "--size", "3", "4"), "Missing option '--output'"),
        (
            ("eval", "out.jsonl", "--min_score", "7"),
            "Invalid value for '--min_score': got 7.0, expected a number in [0, 1]",
        ),
        (("eval", "out.jsonl", "--min_score", "-0.1"), "'--min_score': got -0.1, expected a number in [0, 1]"),
        (("eval", "out.jsonl", "--min_score", "nan"), "'--min_score': got nan, expected a number in [0, 1]"),
        (("eval", "out.jsonl", "--threshold", "2"), "'--threshold': got 2.0, expected a number in [0, 1]"),
        (("eval", "a.jsonl", "b.jsonl", "--compare", "--seed", "-1"), "Invalid value for '--seed': got -1, expected"),
        (
            ("prepare", "coco", "out.jsonl", "--root", "r", "--seed", "-1"),
            "Invalid value for '--seed': got -1, expected",
        ),
        (("prepare", "mix", "mix.yaml", "out.jsonl", "--seed", "-1"), "Invalid value for '--seed': got -1, expected"),
        (
            ("prepare", "check", "rows.jsonl", "--samples", "-3"),
            "Invalid value for '--samples': got -3, expected at least 1",
        ),
    ],
)
def test_usage_errors_are_one_line(himtok, arguments, message):
    assert_rejected(himtok(*arguments), message)


@pytest.mark.parametrize("group", [(), ("prepare",), ("bench",)], ids=" ".join)
def test_a_group_of_verbs_called_bare_prints_its_help(himtok, group):
    _, shown, _ = himtok(*group, "--help")
    assert himtok(*group) == (2, "", shown)


def test_a_verb_called_bare_prints_its_help_and_what_is_missing(himtok):
    _, shown, _ = himtok("encode", "--help")
    assert himtok("encode") == (2, "", f"{shown}\nerror: Missing argument 'MASK'.\n")


def test_the_version_is_that_of_the_package(himtok):
    assert himtok("--version") == (0, f"himtok {himtok_plugin.__version__}\n", "")


def test_verbs_are_listed_in_the_order_in_which_they_are_needed(himtok):
    _, shown, _ = himtok("--help")
    listed = re.findall(r"^  (\S+)", shown.partition("Commands:\n")[2].partition("\n\n")[0], re.MULTILINE)
    assert listed == [verb for verb in VERB_ORDER if verb in listed]


def test_bash_completes_verbs_and_options(tmp_path):
    command = tmp_path / "himtok"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m himtok_plugin.cli "$@"\n')
    command.chmod(0o755)
    script = """
    himtok --install-completion bash >&2 && . ~/.bashrc
    complete() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _himtok_completion himtok; echo "${COMPREPLY[@]}"; }
    complete himtok enc; complete himtok prepare coco --rel; complete himtok encode --c; complete himtok encode some_fi
    """
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    ran = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert ran.stdout.splitlines() == ["encode", "--relative_paths", "--candidates", ""], ran.stderr  # bash adds files
