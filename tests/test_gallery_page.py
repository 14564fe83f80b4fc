"""The gallery page in a browser: nothing is fetched, everything can be looked at, by mouse and by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import until
from tests.test_report import CHECKPOINT, CHECKPOINTS, make_run
from tests.test_report_exemplars import add_exemplars
from vizrobust.report import write_gallery
from vizrobust.results import Table

SCRIPT = "<script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gallery") / "run"
    checkpoints = {**CHECKPOINTS, "s": {**CHECKPOINT, "name": SCRIPT}}
    make_run(folder, range(3), checkpoints=checkpoints, skip=[("k8-a", 1)])
    make_run(folder, [3], checkpoints=checkpoints, status="dead", trajectory=[])
    make_run(folder, range(12), checkpoints=checkpoints, layer="conv2", objective='Channel(layer="conv2")', seeds=(0, 1))
    table = Table("Clarity", ["measure", "k8"], [["AUC - chance", "-0.09"]])
    return write_gallery(folder, [folder], [table], title=f"Title {SCRIPT}")


@pytest.fixture(scope="module")
def natural_gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("natural") / "run"
    make_run(folder, range(3), seeds=(0, 1))
    add_exemplars(folder, [0, 1])
    return write_gallery(folder, [folder])


@pytest.fixture
def page(browser: Any, gallery: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": getattr(request, "param", 1280), "height": 800})
    opened = context.new_page()
    opened.problems, opened.asked = [], []
    opened.on("console", lambda message: opened.problems.append(message.text))
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    opened.on("request", lambda asked: opened.asked.append(asked.url))
    opened.goto(gallery.as_uri())
    yield opened
    assert opened.problems == []
    assert [url for url in opened.asked if not url.startswith(("file:", "data:"))] == []
    context.close()


def shown_units(page: Any) -> list[str]:
    return [name.removeprefix("unit ") for name in page.locator(".unit:visible .name").all_text_contents()]


def test_every_picture_is_there_and_names_stay_text(page: Any) -> None:
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) == 8 + 72
    assert min(widths) > 0
    assert page.title() == f"Title {SCRIPT}"
    assert page.locator(".checkpoints strong").nth(2).inner_text() == SCRIPT
    assert page.locator(".tile img").first.get_attribute("alt") == "k0, logits, unit zero, seed 0, score 1.5"
    assert page.locator(".numbers td").inner_text() == "\N{MINUS SIGN}0.09"
    assert page.locator(".numbers td").evaluate("cell => getComputedStyle(cell).textAlign") == "right"
    assert page.locator(".numbers tbody th").inner_text() == "AUC \N{MINUS SIGN} chance"
    assert page.locator(".tile.dead:visible").count() == 3
    assert page.locator(".origin pre").inner_text().startswith("vizrobust neurons")


@pytest.mark.slow
def test_buttons_choose_a_panel(page: Any) -> None:
    assert shown_units(page) == ["zero", "one", "two", "3"]
    page.get_by_role("button", name="conv2").first.click()
    assert shown_units(page) == [str(unit) for unit in range(12)]
    assert page.locator('[aria-pressed="true"]').first.inner_text().startswith("conv2")


def test_the_address_holds_what_is_seen_and_back_works(page: Any) -> None:
    page.get_by_role("button", name="conv2").first.click()
    page.fill("#filter", "3:6")
    page.select_option("#sort", "score")
    page.locator(".tile:visible").first.click()
    title, address = page.locator("#large-title").inner_text(), page.evaluate("location.hash")
    assert all(part in address for part in ("panel=panel-1", "units=3%3A6", "sort=score", "open=1%2F"))
    page.go_back()
    assert not page.locator("#large").is_visible()
    assert len(shown_units(page)) == 3
    page.evaluate("history.replaceState(null, '', '#')")
    page.reload()
    assert shown_units(page)[0] == "zero"
    page.goto(page.url.split("#")[0] + address)
    page.reload()
    assert page.locator("#large-title").inner_text() == title
    page.keyboard.press("Escape")
    assert len(shown_units(page)) == 3


@pytest.mark.parametrize("page", [1440, 390], indirect=True)
def test_the_first_screen_holds_large_pictures_of_whole_multiples_and_nothing_overflows(page: Any) -> None:
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    first = page.locator(".tile:visible img").first
    box, natural = first.bounding_box(), first.evaluate("image => image.naturalWidth")
    assert box["width"] >= 160
    assert box["width"] % natural == 0
    assert box["y"] + 160 <= 800
    # The pictures of two networks are compared, on a phone too.
    second = page.locator(".unit").first.locator(".cell").nth(1).locator(".tile, .absent").bounding_box()
    assert (second["y"], second["x"] + second["width"] <= width) == (box["y"], True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "shown"),
    [("", "zero one two 3"), ("0", "zero"), ("1:3", "one two"), ("TW, 3", "two 3"), ("o", "zero one two"), ("99", "")],
)
def test_the_filter_takes_numbers_ranges_and_names(page: Any, typed: str, shown: str) -> None:
    page.fill("#filter", typed)
    assert shown_units(page) == shown.split()
    assert page.locator(".panel:visible .none").is_visible() == (shown == "")


@pytest.mark.slow
@pytest.mark.parametrize("key", ["click", "Enter"])
def test_a_picture_enlarges_with_its_facts_and_arrows_move(page: Any, key: str) -> None:
    tile = page.locator(".tile:visible").first
    tile.click() if key == "click" else tile.press("Enter")
    title, dialog = page.locator("#large-title"), page.locator("#large")
    assert dialog.is_visible()
    assert title.inner_text() == "k0 · zero"
    facts = page.locator("#large-facts").inner_text()
    assert all(fact in facts for fact in ("1.5", "plain(steps=3)", "b" * 64, "images/k0-b/0-s0.png", "Logit()", "seed"))
    assert page.locator("#spark polyline").count() == 1
    until(page, "document.querySelector('#large img').naturalWidth > 0")
    for arrow, expected in [
        ("ArrowDown", "k0 · one"),
        ("ArrowRight", f"{SCRIPT} · one"),  # k8 has no picture of this unit
        ("ArrowDown", f"{SCRIPT} · two"),
        ("ArrowLeft", "k8 · two"),
        ("ArrowUp", "k8 · zero"),
        ("ArrowUp", "k8 · zero"),
    ]:
        page.keyboard.press(arrow)
        assert title.inner_text() == expected
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    # The browser tells of the closing a moment after it.
    until(page, "document.activeElement.dataset.facts === '1'")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.querySelector('img').alt") == "k8, logits, unit two, seed 0, score 3.5"


@pytest.mark.slow
def test_a_dead_unit_says_so_when_enlarged(page: Any) -> None:
    page.locator(".tile.dead:visible").first.click()
    assert page.locator("#large-dead").is_visible()
    assert page.locator("#large img").count() == 0
    page.locator("#close").click()
    assert not page.locator("#large").is_visible()


@pytest.mark.slow
@pytest.mark.parametrize("page", [390], indirect=True)
def test_a_picture_enlarges_on_a_phone(page: Any) -> None:
    tile = page.locator(".tile:visible").first
    assert tile.bounding_box()["x"] + tile.bounding_box()["width"] <= 390
    tile.click()
    box = page.locator("#large").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    page.get_by_role("button", name="unit behind").click()
    assert page.locator("#large-title").inner_text() == "k0 · one"


@pytest.fixture
def naturals(browser: Any, natural_gallery: Path) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    problems: list[str] = []
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.goto(natural_gallery.as_uri())
    yield opened
    assert problems == []
    context.close()


@pytest.mark.slow
def test_exemplars_stand_below_their_picture_with_the_place_marked(naturals: Any) -> None:
    assert naturals.locator(".exemplar").count() == 2 * 2 * 2 * 5
    assert min(naturals.evaluate("[...document.images].map(image => image.naturalWidth)")) > 0
    assert naturals.locator(".cell").first.locator(".extreme").all_inner_texts() == ["most exciting", "least exciting"]
    cell = naturals.locator(".cell").first
    picture, first = cell.locator(".tile").first.bounding_box(), cell.locator(".exemplar").first.bounding_box()
    assert picture["y"] + picture["height"] <= first["y"]
    assert cell.bounding_box()["x"] <= first["x"] < cell.bounding_box()["x"] + cell.bounding_box()["width"]
    image, mark = (cell.locator(f".exemplar {what}").first.bounding_box() for what in ("img", ".mark"))
    assert mark["y"] - image["y"] == pytest.approx(image["height"] * 2 / 6, abs=1)
    assert mark["x"] - image["x"] == pytest.approx(image["width"] * 1 / 4, abs=1)
    assert mark["height"] == pytest.approx(image["height"] * 3 / 6, abs=1)
    assert mark["width"] == pytest.approx(image["width"] * 2 / 4, abs=1)


@pytest.mark.slow
def test_an_exemplar_enlarges_with_its_place_and_arrows_move_among_exemplars(naturals: Any) -> None:
    naturals.locator(".exemplar").nth(1).click()
    facts, title = naturals.locator("#large-facts"), naturals.locator("#large-title")
    assert title.inner_text() == "k0 · zero · most exciting"
    found = dict(zip(facts.locator("dt").all_inner_texts(), facts.locator("dd").all_inner_texts(), strict=True))
    assert found["rank"] == "2 from the top of 500 validation images of mnist5k"
    assert (found["index"], found["label"], found["activation"]) == ("10", "two", "2.5")
    assert found["position"] == "row 1, column 0 of 2 x 2"
    assert naturals.locator("#large-image .mark.box").count() == 1
    naturals.keyboard.press("ArrowDown")
    assert title.inner_text() == "k0 · one · most exciting"
    for _ in range(9):
        naturals.keyboard.press("ArrowRight")
    assert title.inner_text() == "k8 · one · most exciting"
    naturals.keyboard.press("Escape")
    naturals.locator(".tile").first.click()
    assert title.inner_text() == "k0 · zero"
    assert naturals.locator("#large-image .mark").count() == 0
    assert naturals.locator("#large-exemplars img").count() == naturals.locator("#large-exemplars .mark").count() == 5
