"""The page of a report in a real browser: nothing fails to load, nothing sticks out, everything is there to read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from by_hand import toy_edit
from toy import trained_toy

from surgery import Fact, load, verify

TOYS = ("llama",)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed to open the page with")
sync_api = pytest.importorskip("playwright.sync_api")
HOSTILE = (
    "</td></table><script>document.title = 'taken'</script> {{ 7 * 7 }} \u202eturned\u2066 \x00\x1b[31m " + "W" * 10_000
)
WIDTHS = (375, 1280)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of one fact, and of many of which the first is hostile, with a wide figure each."""
    folder = tmp_path_factory.mktemp("pages")
    hf, tokenizer, records = trained_toy("llama")
    facts = [Fact.from_record({key: one[key] for key in one if key != "relation"}) for one in records]
    toy = load((hf, tokenizer)), facts
    figure, _ = plt.subplots(figsize=(13, 3))
    evil = facts[0].replace(id=HOSTILE, paraphrases=(*facts[0].paraphrases, f"{facts[0].subject} {HOSTILE}"))
    for name, chosen in {"one": facts[:1], "many": [*facts[1:12]], "hostile": [evil, *facts[1:12]]}.items():
        edit = toy_edit(toy, size=20.0, facts=tuple(chosen), settings={"objective": name, "site": "L3.mlp"})
        verify(toy[0], edit, leak=True, texts=["The", "They"]).save(folder / name, {"a wide one": figure})
    # every section: of a removal, and of a rewrite, which has scores instead of depth
    new = next(one.target for one in facts[0].neighbours if one.target != facts[0].target)
    for name, claim, given in (("deep", "removed", evil), ("scored", "rewritten", evil.replace(new_target=new))):
        chosen = [given, *(one.replace(new_target=new) for one in facts[1:4])]
        edit = toy_edit(toy, size=20.0, facts=tuple(chosen), claim=claim)
        texts = ["They went home in summer", "It was a long day"]
        report = verify(toy[0], edit, leak=True, profile="full", texts=texts, attacks=(), beside=True)
        report.save(folder / name, where={"a wide one": figure})
    plt.close(figure)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # as root, a container's usual user, chromium wants no sandbox; the pages are our own
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def opened(browser: Any, path: Path, width: int) -> tuple[Any, list[str]]:
    """A page, and everything it complained of or asked for."""
    page = browser.new_page(viewport={"width": width, "height": 800})
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda asked: wrong.append(asked.url[:80]))
    page.on(
        "request", lambda asked: wrong.append(asked.url[:80]) if not asked.url.startswith(("file:", "data:")) else None
    )
    page.goto((path / "report.html").as_uri())
    return page, wrong


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["one", "many", "hostile", "deep", "scored"])
def test_it_loads_by_itself_and_fits(browser: Any, folder: Path, name: str, width: int) -> None:
    page, wrong = opened(browser, folder / name, width)
    assert wrong == []
    assert page.title() == "Verification: the fact is still there"
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.body.scrollWidth") <= width
    widths = page.evaluate("[...document.images].map(one => one.naturalWidth)")
    # the one handed in, those of attacks, that of side effects, those of depths
    assert (
        len(widths) == {"one": 1 + 1 + 1, "many": 1 + 6 + 1, "hostile": 1 + 6 + 1, "deep": 1 + 1 + 3, "scored": 2}[name]
    )
    assert all(one > 0 for one in widths)
    assert all(page.evaluate("[...document.images].map(one => one.alt.length > 5)"))
    # whatever a text holds, no cell reaches out of its row
    out = """[...document.querySelectorAll('td > div')].filter(one => one.scrollWidth > one.clientWidth + 1).length"""
    assert page.evaluate(out) == 0
    page.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_facts_stand_there_as_text(browser: Any, folder: Path, width: int) -> None:
    page, _ = opened(browser, folder / "hostile", width)
    text = page.inner_text("body")
    for word in ("</td></table><script>", "{{ 7 * 7 }}", "[202E]turned[2066]", "[0000][001B][31m WWW", "still there"):
        assert word in text
    assert page.locator("script").count() == 0
    assert "L3.mlp" in text
    page.close()


def test_every_part_has_a_section(browser: Any, folder: Path) -> None:
    found = {}
    for name in ("one", "deep", "scored"):
        page, _ = opened(browser, folder / name, 1280)
        found[name] = set(page.evaluate("[...document.querySelectorAll('h2')].map(one => one.innerText)"))
        page.close()
    both = {"Side effects", "As users meet it", "Beside doing nothing and asking nicely", "Classic scores"}
    both.add("Quantisation: what is left of the change")
    assert found["deep"] >= both | {"How deep"}
    assert found["scored"] >= both
    assert "How deep" not in found["scored"]
    assert found["one"] & (both | {"How deep"}) == {"Side effects"}


@pytest.mark.parametrize("name", ["deep", "scored"])
def test_every_section_fits_on_paper(browser: Any, folder: Path, name: str) -> None:
    page, _ = opened(browser, folder / name, 700)
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    assert page.evaluate("[...document.images].every(one => one.getBoundingClientRect().right <= 701)")
    page.close()


def test_a_hostile_fact_changes_its_own_rows_only(browser: Any, folder: Path) -> None:
    places = []
    for name in ("many", "hostile"):
        page, _ = opened(browser, folder / name, 1280)
        places.append(page.evaluate("[...document.querySelectorAll('th')].map(one => one.offsetWidth)"))
        page.close()
    assert places[0] == places[1]


def test_on_paper_what_was_folded_is_open(browser: Any, folder: Path) -> None:
    page, _ = opened(browser, folder / "many", 800)
    last = page.locator("details tr").last
    assert not last.is_visible()
    page.emulate_media(media="print")
    assert last.is_visible()
    assert last.bounding_box()["height"] > 5  # not only in the tree, but on the page
    assert page.evaluate("document.documentElement.scrollWidth") <= 800
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()
