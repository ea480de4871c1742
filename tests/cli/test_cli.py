"""The `himtok` command: help and usage errors of all verbs."""

import subprocess
import sys
import time

import pytest
import typer.main

from himtok_plugin.cli.common import app


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
    status, out, _ = himtok(*command, "--help")
    assert status == 0 and "Usage: " in out
    description, _, commands = out.partition("Commands:")
    assert description.split("\n\n")[1].strip().endswith(".")  # a sentence about the command
    cut = [line for line in commands.splitlines() if line.endswith("...")]
    assert not cut


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing command"),
        (("segment",), "No such command 'segment'"),
        (("init",), "Missing argument"),
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
