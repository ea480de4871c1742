"""On the path by its presence, so that tests in subfolders find `tiny_models`; fixtures of several files."""

import pytest

from himtok_plugin import cli


@pytest.fixture
def himtok(capsys):
    """Run the command in this process: (exit status, stdout, stderr)."""

    def run(*arguments):
        capsys.readouterr()  # what fixtures printed
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run
