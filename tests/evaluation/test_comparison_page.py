"""The page of `himtok eval --compare`: which results are shown, as pictures and as text."""

import json
import re

from PIL import Image
from tiny_results import write_two_runs

from himtok_plugin.evaluation.comparison import compare_results
from himtok_plugin.evaluation.comparison_page import write_comparison_page
from himtok_plugin.evaluation.protocols import find_protocol


def test_the_page_shows_worse_and_better_results_as_pictures_and_escapes_text(tmp_path):
    a, b, *_ = write_two_runs(tmp_path)
    Image.new("RGB", (10, 10), "red").save(tmp_path / "1.png")
    lines = [json.loads(line) for line in a.read_text().splitlines()]
    for row in lines:
        row["images"] = [str(tmp_path / row["images"][0])]
    a.write_text("".join(json.dumps(row) + "\n" for row in lines))
    compared = compare_results(a, b, find_protocol("lisa"), resamples=20)
    write_comparison_page(tmp_path / "page.html", a, b, compared, shown=3)
    page = (tmp_path / "page.html").read_text()
    assert "b is worse: 1 rows" in page and "b is better: 3 rows" in page
    assert "row 4: &lt;image&gt;Row 3?" in page and "It is &lt;b&gt;" in page and "It is <b>" not in page
    assert page.count("data:image/jpeg;base64,") == 4 * 4 and "Protocol lisa" in page
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert captions[:3] == ["image", "truth", "a: IoU " + f"{compared.rows[0].a:.3f}"]
    assert f"<td>gIoU</td><td>{compared.differences[1].a:.4f}</td>" in page
