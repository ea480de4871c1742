"""The `himtok` command: arguments in, one call into the module that does the work, results out.

Contract: results go to stdout, progress and remarks to stderr. Bad input is one line `error: ...` on stderr and exit
status 2; 1 means that there was nothing to do (text without a mask), that rows were set aside or that a command of the
demo failed. Heavy modules are imported inside the verbs, so that `himtok --help` answers at once. Does not know how
anything is computed. One file per family of verbs.
"""

from __future__ import annotations

import sys

import typer

from . import bench, demo, mask_codes, prepare, scores  # noqa: F401 they register their verbs
from .common import BAD_INPUT, INTERRUPTED, app


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script; leaves by SystemExit."""
    try:
        status = app(args=arguments, standalone_mode=False)
    except typer.Exit as stop:
        status = stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        status = INTERRUPTED
    except (ValueError, OSError) as error:
        status = _refuse(str(error))
    except Exception as error:
        # Usage errors belong to click, which typer ships a copy of: told by what they can do, not by their class.
        if not hasattr(error, "format_message"):
            raise
        status = _refuse(error.format_message())
    sys.exit(status if isinstance(status, int) else 0)


def _refuse(message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return BAD_INPUT
