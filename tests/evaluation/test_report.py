"""Reports as JSON and as Markdown."""

import json

from himtok_plugin.evaluation.protocols import find_protocol
from himtok_plugin.evaluation.provenance import RunCard
from himtok_plugin.evaluation.report import LISTED_FAILURES, ScoreReport


def make_report(**fields):
    return ScoreReport("val", {"cIoU": 0.25, "N-acc": None, "samples": 3}, find_protocol("lisa"), **fields)


def test_markdown_has_scores_protocol_run_and_classes():
    card = RunCard(["some/checkpoint"], "ab" * 16, 8, "soft", 0.5, versions={"torch": "2"}, further={"port": 80})
    text = make_report(run=card, per_class={"a|b": 0.5, "c": None}).markdown()
    for line in (
        "| cIoU | 0.2500 | lisa |",
        "| N-acc | - | lisa |",
        "| samples | 3 | lisa |",
        f"| checkpoint hash | {'ab' * 16} |",
        "| mask tokens | 8 |",
        "| versions | torch 2 |",
        "| port | 80 |",
        r"| a\|b | 0.5000 |",
        "| c | - |",
    ):
        assert line in text.splitlines()


def test_an_unknown_run_has_dashes():
    rules = make_report().rules()
    assert rules["protocol"].startswith("lisa: ") and rules["checkpoint"] == rules["seed"] == rules["versions"] == "-"


def test_markdown_lists_the_first_failures_and_json_all(tmp_path):
    failures = [f"rows.jsonl: row {i}: has no result" for i in range(LISTED_FAILURES + 5)]
    written, shown = make_report(failures=failures).save(tmp_path / "new" / "report")
    assert (written.name, shown.name) == ("report.json", "report.md")
    assert json.loads(written.read_text())["failures"] == failures
    text = shown.read_text()
    assert text.count("has no result") == LISTED_FAILURES and "… 5 more" in text


def test_names_are_shown_as_they_are():
    """A class, file or setting of other people cannot become HTML, a cell or a link."""
    name = "<script>x</script> | `a` [b](javascript:c) *d* _e_ f_g & \\\n# h"
    card = RunCard([name], further={name: name})
    report = ScoreReport(name, {"cIoU": 0.5}, find_protocol("plain"), card, failures=[name], per_class={name: 0.5})
    shown = r"&lt;script&gt;x&lt;/script&gt; \| \`a\` \[b\](javascript:c) \*d\* \_e\_ f_g &amp; \\ # h"
    lines = report.markdown().splitlines()
    for line in (
        f"## {shown}",
        f"| {shown} | {shown} |",
        f"| checkpoint | {shown} |",
        f"- {shown}",
        f"| {shown} | 0.5000 |",
    ):
        assert line in lines
