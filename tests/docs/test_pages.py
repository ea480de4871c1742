"""README, docs/ and model card: links lead somewhere, configs that are named exist, pages stay short."""

import json
import re

import pytest
import yaml
from pages import DOCS, PAGES, README, anchors, blocks, languages, links, prose
from paths import ROOT

from himtok_plugin.data.mixture import Mixture
from himtok_plugin.resources import config_names

MOST_LINES = {README: 200}
MOST_LINES_OF_A_PAGE = 250
LANGUAGES = {"", "bash", "python", "json", "yaml"}  # the tests run or read all of these but ""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


@each_page
def test_pages_are_short(page):
    assert len(page.read_text(encoding="utf-8").splitlines()) <= MOST_LINES.get(page, MOST_LINES_OF_A_PAGE)


@each_page
def test_relative_links_lead_to_files_and_headings(page):
    broken = []
    for link in links(page):
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_the_readme_links_to_every_page():
    assert {f"docs/{page.name}" for page in DOCS.glob("*.md")} <= set(links(README))


@each_page
def test_configs_and_examples_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"swift_configs/(\w+)\.yaml", text)) <= set(config_names())
    assert all((ROOT / name).is_file() for name in re.findall(r"\bexamples/\w+\.py", text))


def test_the_tests_know_the_language_of_every_block():
    assert languages() <= LANGUAGES


@pytest.mark.parametrize("block", blocks("json"), ids=lambda block: block.name)
def test_json_blocks_are_json(block):
    json.loads(block.text)


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.name)
def test_yaml_blocks_are_mixtures(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "refer").mkdir(parents=True)
    (tmp_path / "mine.jsonl").touch()
    (tmp_path / "mixture.yaml").write_text(block.text)
    mixture = Mixture.load(tmp_path / "mixture.yaml")
    assert len(mixture.parts) == len(yaml.safe_load(block.text)["parts"])


@each_page
def test_figures_stand_on_the_pages_of_results(page):
    figures = re.findall(r"\b0\.\d{3}\b", prose(page))
    assert not figures or page.name.startswith("results")
