"""Progress bars: on a terminal only, and never on stdout."""

import io
import sys

import pytest

from himtok_plugin.cli.progress_bars import BYTES, file_progress, progress, progress_bar


class Terminal(io.StringIO):
    """A terminal of unknown width, as some remote shells have."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def make_terminal(monkeypatch):
    """Make stderr a terminal; in the test itself, because pytest replaces stderr after the fixtures."""

    def make() -> Terminal:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stderr

    return make


def test_a_terminal_shows_what_is_done_from_the_start(make_terminal, capsys):
    terminal = make_terminal()
    with progress("image") as report:
        report(2, 9)
    shown = terminal.getvalue()
    assert "image" in shown and "0:00:00" in shown and "9" in shown
    assert capsys.readouterr().out == ""


def test_bytes_of_files_are_shown_in_their_units(make_terminal, tmp_path):
    terminal = make_terminal()
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"x" * 3000)
    with file_progress(file, file) as report:
        report(1500)
    assert "6.0 kB" in terminal.getvalue()


def test_a_note_stands_beside_the_unit(make_terminal):
    terminal = make_terminal()
    with progress_bar("row") as bar:
        bar.update(1, 2, "3 rejected [red]")
    assert "row, 3 rejected [red]" in terminal.getvalue()


def test_pipes_and_other_processes_show_nothing(monkeypatch, make_terminal):
    terminal = make_terminal()
    with progress_bar("row", 5, shown=False) as bar:
        bar.update(3)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar(BYTES, 5) as bar:
        bar.update(3)
    assert terminal.getvalue() == "" and sys.stderr.getvalue() == ""


@pytest.mark.parametrize("out", [io.StringIO, Terminal])
def test_lines_under_a_bar_go_to_stdout_unchanged(monkeypatch, make_terminal, out):
    make_terminal()
    monkeypatch.setattr(sys, "stdout", out())
    with progress_bar("mask", 2) as bar:
        for i in range(2):
            bar.print("x" * 300 + f" [red] {i}")
            bar.update(i + 1)
    assert sys.stdout.getvalue() == "".join("x" * 300 + f" [red] {i}\n" for i in range(2))
