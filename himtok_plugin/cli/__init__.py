"""The `himtok` command. Each module holds a family of verbs: they parse arguments, call other packages, print results.

Contract: results go to stdout, progress and warnings to stderr. Bad input prints one line `error: ...` to stderr and
exits with status 2; a verb, or a group of verbs, that is called without the arguments it needs prints its help to
stderr first. Status 1 means that there was nothing to do (text without a mask), that samples were rejected or have
faults, or that a command of the demo failed. Verbs import heavy modules when they run, so `himtok --help` is fast.

Does not compute anything itself.
"""

from __future__ import annotations

import sys
from typing import Any

import typer

from . import adapters, bench, decoding, demo, exporting, mask_codes, page, prepare, scores, segmenting  # noqa: F401 - importing registers their verbs
from .common import BAD_INPUT, INTERRUPTED, app

PROGRAM = "himtok"  # in messages and for the shell's completion, also under `python -m himtok_plugin.cli`


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script; always raises SystemExit."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        status = app(args=given, prog_name=PROGRAM, standalone_mode=False)
    except typer.Exit as stop:
        status = stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        status = INTERRUPTED
    except (ValueError, OSError) as error:
        status = _print_error(str(error))
    except Exception as error:
        # Usage errors are classes of the copy of click in typer, so they are recognised by their method.
        if not hasattr(error, "format_message"):
            raise
        status = _print_usage_error(error, given)
    sys.exit(status if isinstance(status, int) else 0)


def _print_usage_error(error: Any, arguments: list[str]) -> int:
    """Print an error of the command line, and where help is; the help itself if the command was called bare."""
    context = getattr(error, "ctx", None)
    if context is None:
        return _print_error(error.format_message())
    if arguments != context.command_path.split()[1:]:
        return _print_error(f"{error.format_message()} (see `{context.command_path} -h`)")
    print(context.get_help(), file=sys.stderr)
    if hasattr(context.command, "commands"):  # nobody who types `himtok` alone has made an error
        return BAD_INPUT
    print(file=sys.stderr)
    return _print_error(error.format_message())


def _print_error(message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return BAD_INPUT
