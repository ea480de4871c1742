"""`himtok split-adapter`: an adapter for engines that load plain LoRA only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import ForceOption, OutFolder, QuietOption, app, hide_loading_bars, stdout_to_stderr
from .progress_bars import progress


@app.command("split-adapter")
def split_adapter(
    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="Folder of a LoRA adapter with trained token embeddings.")
    ],
    out: OutFolder,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="Base model, folder or hub id. Default: the one that it names."),
    ] = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Split an adapter, so that vLLM can load it.

    Writes OUT/base, the base model with the adapter's token embeddings, and OUT/adapter, its LoRA weights. vLLM loads
    no adapter that has token embeddings itself. Both together answer as the adapter does.
    """
    with stdout_to_stderr():
        from himtok_plugin.adapters import split

    hide_loading_bars(quiet)
    with stdout_to_stderr(), progress("file", not quiet) as report:
        split.split_adapter(adapter, out, base, report, force)
    print(out)
