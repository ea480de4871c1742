"""The `himtok` command. Each module holds a family of verbs: they parse arguments, call other packages, print results.

Contract: results go to stdout, progress and warnings to stderr. Bad input prints one line `error: ...` to stderr and
exits with status 2. Status 1 means that there was nothing to do (text without a mask), that samples were rejected or
have faults, or that a command of the demo failed. Verbs import heavy modules when they run, so `himtok --help` is fast.

Does not compute anything itself.
"""

from __future__ import annotations

import sys

import typer

from . import adapters, bench, decoding, demo, mask_codes, prepare, scores  # noqa: F401 - importing registers their verbs
from .common import BAD_INPUT, INTERRUPTED, app


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script; always raises SystemExit."""
    try:
        status = app(args=arguments, standalone_mode=False)
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
        status = _print_error(error.format_message())
    sys.exit(status if isinstance(status, int) else 0)


def _print_error(message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return BAD_INPUT
