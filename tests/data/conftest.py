"""The fixture of all tests of `himtok prepare`."""

import json

import pytest
from on_disk import read_rows


@pytest.fixture
def prepare(himtok, tmp_path):
    """Run `himtok prepare NAME …` in this process: (rows, summary, entries of the skip file).

    Of a run that fails, it is the error; with `skipped=True`, for runs without rows, (error, entries of the skip file).
    """

    def run(name, root, *arguments, status=0, skipped=False):
        out = tmp_path / "out.jsonl"
        for old in tmp_path.glob("out.jsonl*"):
            old.unlink()
        workers = () if "--num_workers" in arguments else ("--num_workers", 0)
        code, printed, error = himtok("prepare", name, "--root", root, out, "--json", "-", *workers, *arguments)
        assert code == status, error
        listed = out.with_name(out.name + ".skipped.jsonl")
        entries = read_rows(listed) if listed.exists() else []
        if code:
            assert not out.exists() and error.startswith("error: ") and error.count("\n") == 1, error
            return (error, entries) if skipped else error
        summary = json.loads(printed)
        rows = read_rows(out)
        assert summary["rows"] == len(rows) and summary["masks"] == sum(len(row["masks"]) for row in rows)
        assert sum(summary["skipped"].values()) + sum(summary["unused"].values()) == len(entries)
        return rows, summary, entries

    return run
