"""`swift app`: the page of himtok_plugin/app/, in front of a server of its own or of another one.

Contract: the page opens at once, and the model loads behind it. A model that cannot be loaded is a sentence on the page
and in the terminal, and the exit status is 1 in the end. With `--base_url`, no model is loaded here.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from .background_server import BackgroundServer

if TYPE_CHECKING:
    from himtok_plugin.app.settings import PageSettings

_FAILED, _BAD_INPUT = 1, 2
_EVERYBODY = {"0.0.0.0", "::", "[::]"}


def run_page(args: Any) -> None:
    """Open the page and serve it until a signal ends it; exits with status 2 if it cannot listen at its address.

    Args:
        args: ms-swift's `AppArguments` with the plugin's options.
    """
    try:
        has_failed = open_page(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(_BAD_INPUT)
    if has_failed:
        sys.exit(_FAILED)


def open_page(args: Any) -> bool:
    """Serve the page until a signal ends it.

    Returns:
        Whether the page's own server has failed.
    Raises:
        ValueError: the page cannot listen at its address.
    """
    from himtok_plugin.app.hosting import PageAddress, host_page, until_signal
    from himtok_plugin.app.page import build_page

    address = PageAddress(args.server_name, args.server_port, args.share, args.ssl_keyfile, args.ssl_certfile)
    address.check()
    reported: list[str] = []
    with until_signal(), contextlib.ExitStack() as stack:
        server = None if args.base_url else stack.enter_context(BackgroundServer(args))

        def describe_failure() -> str | None:
            failure = None if server is None else server.describe_failure()
            if failure is not None and not reported:
                reported.append(failure)
                print(f"error: {failure} The page shows it too; Ctrl-C closes the page.", file=sys.stderr, flush=True)
            return failure

        settings = make_settings(args, server, describe_failure)
        page = build_page(settings)
        if args.server_name in _EVERYBODY:
            print("Everybody who reaches this port can send images and questions to the model.", file=sys.stderr)
        host_page(page, address, settings.max_file_bytes, describe_failure)
    return bool(reported)


def make_settings(
    args: Any, server: BackgroundServer | None, describe_failure: Callable[[], str | None]
) -> PageSettings:
    """What the page knows about its server: the limits are those that the arguments set, also for another server."""
    from himtok_plugin.app.settings import PageSettings

    limits = {field.name: getattr(args, field.name) for field in fields(PageSettings) if field.name.startswith("max_")}
    return PageSettings(
        base_url=args.base_url if server is None else server.base_url,
        api_key=args.api_key if server is None else server.api_key,
        title=args.studio_title,
        describe_failure=describe_failure,
        **limits,
    )
