"""processes.py: what is read from the environment."""

import pytest

from himtok_plugin.jobs.processes import Processes, environment_int


def test_an_integer_or_the_default(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert (environment_int("RANK", 0), environment_int("LOCAL_RANK", 0)) == (3, 0)


def test_a_value_that_is_not_an_integer_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="WORLD_SIZE: got 'two' in the environment, expected an integer"):
        with Processes.from_environment():
            pass
