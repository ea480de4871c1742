"""`swift app`: the page to segment in."""

from __future__ import annotations

import sys

from .replacing import around


def open_segmentation_page() -> None:
    """What: `swift app` opens the page of himtok_plugin/app/, while the model loads, and leaves no process behind. A
    port in use is refused.
    Why: ms-swift's page shows masks as text. It opens when its server answers, and waits forever for one that has
    failed; SIGTERM leaves the server running. Of ports, it takes the next free one without a word.
    Goes when: a plugin can register a page, and ms-swift ends what it starts.
    Upstream: none known (looked 2026-11-29).
    """
    if "swift.pipelines.app.app" not in sys.modules:  # this is not `swift app`; the module imports gradio
        return
    from swift.arguments import app_args
    from swift.pipelines.app.app import SwiftApp

    from himtok_plugin.swift_integration.serving.page import run_page

    @around(SwiftApp, "run")
    def run(original, self):
        return run_page(self.args)

    @around(app_args, "find_free_port")
    def find_free_port(original, start_port=None, retry=100):
        return original(start_port, retry) if start_port is None else start_port
