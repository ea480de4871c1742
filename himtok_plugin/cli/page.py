"""`himtok app`: `swift app --plugin himtok`, in this process and with errors of one line."""

from __future__ import annotations

import os
from types import CodeType
from typing import Annotated

import typer

from himtok_plugin import launch, startup

from .common import app

LOG_LEVEL = "LOG_LEVEL"  # of ms-swift


@app.command(
    "app",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Further options are those of `swift app --plugin himtok`, such as --max_batch_size or --infer_backend.",
)
def open_app(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Folder or hub id of the model; `default` ships with the package."),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option("--base_url", help="Ask this server instead, such as http://gpu-machine:8000/v1."),
    ] = None,
    api_key: Annotated[str | None, typer.Option("--api_key", help="Key of that server.")] = None,
    server_name: Annotated[
        str, typer.Option("--server_name", help="Address to listen on; 0.0.0.0 lets other machines open the page.")
    ] = "127.0.0.1",
    server_port: Annotated[int, typer.Option("--server_port", help="Port of the page; 0 for any free one.")] = 7860,
    share: Annotated[bool, typer.Option("--share", help="Also open gradio's public tunnel to the page.")] = False,
    studio_title: Annotated[str | None, typer.Option("--studio_title", help="Title of the page.")] = None,
) -> None:
    """Open a page in the browser to segment images in.

    The page opens while the model is loading. Ctrl-C closes it.
    """
    startup.require_gradio()
    named = {
        "model": model,
        "base_url": base_url,
        "api_key": api_key,
        "server_name": server_name,
        "server_port": server_port,
        "share": str(share).lower(),
        "studio_title": studio_title,
    }
    if model is None and base_url is None and not any(word.partition("=")[0] == "--adapters" for word in context.args):
        raise ValueError("model: got none, expected --model, --adapters or --base_url; --model default is a small one")
    flags = [word for name, value in named.items() if value is not None for word in (f"--{name}", str(value))]
    os.environ.setdefault(LOG_LEVEL, "WARNING")
    command = launch.prepare_command(["app", *flags, *context.args])
    assert isinstance(command, CodeType)  # `swift app` runs in one process
    exec(command, {"__name__": "__main__"})
