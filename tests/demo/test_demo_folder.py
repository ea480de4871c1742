"""`himtok demo` replaces only what it has written itself."""

import pytest

from himtok_plugin.demo.run import Demo
from himtok_plugin.demo.training import TrainingDemo


@pytest.mark.parametrize(
    ("cls", "options", "name"),
    [(Demo, (), "results.jsonl"), (Demo, (), "held_out"), (TrainingDemo, ("--quick",), "stage2")],
)
def test_files_of_others_are_kept(himtok, tmp_path, monkeypatch, cls, options, name):
    written = []
    monkeypatch.setattr(cls, "run", lambda self: written.append(self.folder) or {"scores": {}})
    out = tmp_path / "out"
    (out / name).mkdir(parents=True)
    (out / name / "mine.txt").write_text("mine")
    for force in ((), ("--force",)):
        status, _, err = himtok("demo", out, *options, *force)
        assert status == 2 and f"got {name}, which no earlier `himtok demo` has written" in err
    assert not written and (out / name / "mine.txt").read_text() == "mine"


def test_a_demo_is_repeated_with_force_beside_other_files(himtok, tmp_path, monkeypatch):
    def run(self):
        (self.folder / "scores.json").write_text("{}")
        return {"scores": {}}

    monkeypatch.setattr(Demo, "run", run)
    (tmp_path / "notes.txt").write_text("mine")
    assert "pass --force" in himtok("demo", tmp_path)[2]
    for _ in range(2):
        status, _, err = himtok("demo", tmp_path, "--force")
        assert status == 0, err
    assert (tmp_path / "notes.txt").read_text() == "mine"
