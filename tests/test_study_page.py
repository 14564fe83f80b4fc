"""The page of a study in a browser: all that was measured is there, units can be searched, sorted and looked through."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import until
from tests.study_reports import DOSES, SCRIPT, full_report, hostile_report, partial_report
from vizrobust.report import study_page, study_tables, style
from vizrobust.report.study_data import StudyGroups
from vizrobust.report.study_page import write_study
from vizrobust.report.study_sections import inside

NAMES = ("tench", "springer", "church", "truck")
SECTIONS = (
    "Verdict", "Units over K", "The verdict in full", "Accuracy over K", "Clarity over K", "Clarity and distance",
    "Clarity against accuracy", "Unforeseen attacks", "Common corruptions", "Secondary outcomes",
    "Confounds", "Methods",
)  # fmt: skip


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with two image seeds, and one picture missing on disk; its figures are those of a smaller study."""
    folder = tmp_path_factory.mktemp("full")
    report = full_report(folder, names=NAMES, image_seeds=2)
    (folder / "pictures/k2-s0/plain/logits/3-s0.png").unlink()
    (folder / "pictures/k2-s0/plain/logits/3-s1.png").unlink()
    figures = study_page._figures
    smaller = full_report(tmp_path_factory.mktemp("smaller"), names=NAMES[:1], seeds=1, doses=(0, 8), recipes=("plain",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_page, "_figures", lambda folder, study: figures(folder, StudyGroups(smaller)))
        patch.setattr(style, "DPI", 60)
        return write_study(folder, report)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages without figures, which are not what these are about."""
    folder = tmp_path_factory.mktemp("others")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_page, "_figures", lambda folder, study: {})
        pages = {"partial": write_study(folder / "partial", partial_report(folder / "partial"))}
        pages["hostile"] = write_study(folder / "hostile", hostile_report(folder / "hostile"))
    return pages


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page whose pictures are files beside it."""
    folder = tmp_path_factory.mktemp("linked 1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_page, "_figures", lambda folder, study: {})
        patch.setattr(study_page, "EMBED_BELOW", 0)
        return write_study(folder, full_report(folder, seeds=1, names=NAMES))


@pytest.fixture
def opened(browser: Any, full: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Open one of the pages; whatever it complains of or asks for from elsewhere fails the test."""
    contexts, problems, asked = [], [], []

    def go(name: str = "full", width: int = 1280, **how: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, **how)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        own = full if name == "full" else request.getfixturevalue("linked") if name == "linked" else None
        page.goto((own or request.getfixturevalue("others")[name]).as_uri())
        return page

    yield go
    assert problems == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    for context in contexts:
        context.close()


def unit_names(page: Any) -> list[str]:
    return [name.removeprefix("unit ") for name in page.locator(".unit:visible .name").all_text_contents()]


def test_sections_stand_in_their_order_and_every_picture_and_figure_loads(opened: Any, full: Path) -> None:
    page = opened()
    assert page.evaluate("[...document.querySelectorAll('main > section')].map(one => one.getAttribute('aria-label'))") == list(
        SECTIONS
    )
    widths = page.evaluate("[...document.images].map(image => [image.src.slice(0, 5), image.naturalWidth])")
    tiles, naturals, figures = 2 * (4 * (len(DOSES) + 3) * 2) - 2, 2 * 4 * 9, 10
    assert len(widths) == tiles + naturals + figures
    assert min(width for _, width in widths) > 0
    assert {source for source, _ in widths} == {"data:"}
    linked = page.evaluate("[...document.querySelectorAll('a')].map(link => link.getAttribute('href'))")
    files = [name for name in linked if not name.startswith("#")]
    assert len(files) == 2 * 10 + 2
    assert all((full.parent / name).is_file() for name in files)
    assert all(page.locator(name).count() == 1 for name in linked if name.startswith("#"))
    assert page.locator(".unmeasured").count() == 0


@pytest.mark.parametrize("width", [1440, 390])
def test_the_first_screen_holds_the_finding_and_a_picture(opened: Any, width: int) -> None:
    page = opened(width=width)
    sentence, first = page.locator(".sentence").first.bounding_box(), page.locator(".tile:visible img").first.bounding_box()
    assert sentence["y"] < first["y"]
    assert first["width"] >= 160
    assert first["y"] + 160 <= 900
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.slow
def test_the_verdict_comes_first_with_estimates_and_intervals(opened: Any) -> None:
    page = opened()
    assert page.locator(".sentence").first.inner_text().startswith("Pictures of adversarially trained")
    rows = page.locator("#verdict table").first.locator("tbody tr")
    assert rows.count() == 2 * 2 * 3
    texts = rows.nth(0).locator("th, td").all_inner_texts()
    assert texts[:6] == ["Transfer to a judge (log-odds)", "plain", "H1", "supported", "0.31", "0.12 to 0.5"]


@pytest.mark.slow
def test_methods_hold_what_is_needed_to_check(opened: Any) -> None:
    page = opened()
    methods = page.locator(".methods")
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    text = methods.inner_text()
    for part in (
        "vizrobust study --data",
        "c" * 64,
        "trained twice",
        "torch 2.15.0",
        "plain(steps=256",
        "PGD-50()",
        "4/255",
        "judge-heavy",
    ):
        assert part in text
    assert text.count("weights (sha256)") == 33


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "shown"),
    [("", "tench springer church truck"), ("0", "tench"), ("1:3", "springer church"), ("TR, 0", "tench truck"), ("99", "")],
)
def test_the_filter_takes_numbers_ranges_and_names(opened: Any, typed: str, shown: str) -> None:
    page = opened()
    page.fill("#filter", typed)
    assert unit_names(page) == shown.split()
    assert page.locator(".panel:visible .none").is_visible() == (shown == "")


@pytest.mark.slow
def test_units_sort_by_score_and_by_the_difference_of_two_checkpoints(opened: Any) -> None:
    page = opened()
    assert page.locator("#group-a").input_value() == "k16"
    assert page.locator("#group-b").input_value() == "k0"
    page.select_option("#sort", "score")
    # (1 + rank) * (1 + u % 3) + u / 100: units 2, 1, 3, 0 at any K.
    assert unit_names(page) == ["church", "springer", "truck", "tench"]
    assert page.locator(".unit:visible .value").all_inner_texts() == ["18", "12", "6.03", "6"]
    page.select_option("#measure", "transfer")
    assert unit_names(page) == ["truck", "church", "springer", "tench"]
    page.select_option("#measure", "activation")
    page.select_option("#sort", "difference")
    assert unit_names(page) == ["church", "springer", "tench", "truck"]
    assert page.locator(".unit:visible .value").all_inner_texts() == ["+15", "+10", "+5", "+5"]
    page.select_option("#group-a", "k0")
    page.select_option("#group-b", "k16")
    assert unit_names(page) == ["tench", "truck", "springer", "church"]
    page.select_option("#group-a", "k0-early")  # a control without pictures
    assert page.locator(".unit:visible .value").first.inner_text() == "no value"
    page.select_option("#sort", "order")
    assert unit_names(page) == list(NAMES)


@pytest.mark.slow
def test_sorting_holds_when_the_recipe_changes_and_one_seed_is_shown(opened: Any) -> None:
    page = opened()
    page.select_option("#sort", "score")
    page.get_by_role("button", name="fourier").click()
    assert unit_names(page) == ["church", "springer", "truck", "tench"]
    assert page.locator(".tile:visible").count() == 4 * 9
    page.select_option("#seed-image", "")
    assert page.locator(".tile:visible").count() == 4 * 9 * 2


@pytest.mark.slow
@pytest.mark.parametrize("key", ["click", "Enter"])
def test_a_picture_enlarges_beside_its_exemplars_and_arrows_go_on(opened: Any, key: str) -> None:
    page = opened()
    tile = page.locator(".tile:visible").nth(1)
    tile.click() if key == "click" else tile.press("Enter")
    title, dialog = page.locator("#large-title"), page.locator("#large")
    assert title.inner_text() == "tench · K = 1"
    assert page.locator("#large-exemplars img").count() == 9
    facts = page.locator("#large-facts").inner_text()
    assert all(
        part in facts
        for part in ("pictures/k1-s0/plain/logits/0-s0.png", "Transfer to a judge", "K = 1, seed 0", "plain(steps=256")
    )
    until(page, "document.querySelector('#large-image img').naturalWidth > 0")
    large, natural = page.locator("#large-image").bounding_box(), page.locator("#large-exemplars").bounding_box()
    assert large["x"] + large["width"] <= natural["x"]
    for arrow, expected in [
        ("ArrowRight", "tench · K = 2"), ("ArrowDown", "springer · K = 2"), ("ArrowLeft", "springer · K = 1"),
        ("ArrowUp", "tench · K = 1"), ("ArrowUp", "tench · K = 1"),
    ]:  # fmt: skip
        page.keyboard.press(arrow)
        assert title.inner_text() == expected
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    until(page, "document.activeElement.querySelector('img').alt.startsWith('tench, K = 1, score ')")


@pytest.mark.slow
def test_a_slider_goes_through_k_for_one_unit(opened: Any) -> None:
    page = opened()
    page.locator(".unit:visible .name").nth(2).press("Enter")
    title, sources = page.locator("#large-title"), set()
    assert page.evaluate("document.activeElement.id") == "slider"
    for k in DOSES:
        assert title.inner_text() == f"church · K = {k}"
        assert page.locator("#ticks .now").inner_text() == str(k)
        sources.add(page.locator("#large-image img").get_attribute("src"))
        page.keyboard.press("ArrowRight")
    assert len(sources) == len(DOSES)
    assert title.inner_text() == "church · K = 16"
    page.keyboard.press("Home")
    assert title.inner_text() == "church · K = 0"
    page.keyboard.press("ArrowUp")
    assert title.inner_text() == "springer · K = 0"
    page.evaluate("const s = document.getElementById('slider'); s.value = 3; s.dispatchEvent(new Event('input'))")
    assert title.inner_text() == "springer · K = 4"
    assert page.locator("#slider").get_attribute("aria-valuetext") == "K = 4"


@pytest.mark.slow
def test_everything_is_reached_by_the_tab_key_with_a_visible_focus(opened: Any) -> None:
    page = opened()
    met = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        what = page.evaluate("(one => one.id || one.className || one.tagName)(document.activeElement)")
        met.add(what)
        style = page.evaluate(
            "(one => [getComputedStyle(one).outlineStyle, getComputedStyle(one).outlineWidth])(document.activeElement)"
        )
        assert style[0] != "none", what
        assert style[1] != "0px", what
    assert {"filter", "size", "sort", "seed-image", "name", "A"} <= met
    assert any(what.startswith("tile") for what in met)


@pytest.mark.slow
def test_a_missing_picture_says_so_and_is_passed_over_by_nothing(opened: Any) -> None:
    page = opened()
    page.locator(".unit:visible").nth(3).locator('.cell[data-group="k2"] .tile:visible').click()
    assert page.locator("#large-dead").is_visible()
    assert page.locator("#large-title").inner_text() == "truck · K = 2"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "partial", "hostile"])
def test_a_phone_needs_no_sideways_scrolling_of_the_page(opened: Any, name: str) -> None:
    page = opened(name, width=390)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    if name != "partial":
        page.locator(".tile:visible").first.click()
        box = page.locator("#large").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert page.evaluate("document.getElementById('large').scrollWidth <= document.getElementById('large').clientWidth")


def test_a_hostile_name_stays_text(opened: Any, others: dict[str, Path]) -> None:
    page = opened("hostile")
    assert page.evaluate("document.scripts.length") == 2
    assert "<script>alert" not in others["hostile"].read_text(encoding="utf-8")
    for place in (".sentence >> nth=0", ".methods pre >> nth=0", ".unit:visible .name >> nth=0", "header p"):
        assert SCRIPT in page.locator(place).inner_text()
    page.locator(".unit:visible").first.locator('.tile:has(img[alt*="K = 8"])').first.click()
    assert SCRIPT in page.locator("#large-title").inner_text()
    assert SCRIPT in page.locator("#large-facts").inner_text()
    page.keyboard.press("Escape")
    page.select_option("#sort", "score")
    page.select_option("#group-a", SCRIPT)
    assert unit_names(page)[0].startswith("cassette")


@pytest.mark.slow
def test_empty_fields_are_said_to_be_unmeasured(opened: Any) -> None:
    page = opened("partial")
    assert page.locator(".sentence").inner_text() == "This study has no verdict yet."
    assert page.locator(".unmeasured").count() == 8
    assert page.locator("main > section").count() == len(SECTIONS) - 1  # secondary outcomes are there only where measured
    assert page.locator("dialog").is_visible() is False


@pytest.mark.slow
def test_a_quick_study_says_what_it_leaves_out(opened: Any) -> None:
    notices = " ".join(opened("hostile").locator(".notice").all_inner_texts())
    assert "Descriptive: these checkpoints only" in notices
    assert "the fourier recipe; corruptions; two training seeds" in notices


@pytest.mark.slow
def test_without_scripts_everything_is_shown(opened: Any) -> None:
    page = opened(java_script_enabled=False)
    assert page.locator(".panel:visible").count() == 2
    assert page.locator(".tile:visible").count() == 2 * 4 * 9 * 2
    assert page.locator(".exemplar-grid img:visible").count() == 2 * 4 * 9
    assert page.locator(".tools:visible").count() == 0


@pytest.mark.slow
def test_many_pictures_are_linked_where_they_are(opened: Any) -> None:
    page = opened("linked")
    assert page.locator(".tile img").first.get_attribute("src") == "pictures/k0-s0/plain/logits/0-s0.png"
    page.locator(".tile:visible").first.click()
    until(page, "document.querySelector('#large-image img').naturalWidth > 0")


@pytest.mark.slow
def test_the_dark_scheme_keeps_contrast(opened: Any) -> None:
    page = opened(color_scheme="dark")
    colors = page.evaluate(
        "['.sentence', '.unit .name', '.quiet', '.tools label'].map(one => getComputedStyle(document.querySelector(one)).color)"
    )
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert all(contrast(color, paper) >= 4.5 for color in colors)


def contrast(one: str, other: str) -> float:
    """WCAG 2's ratio of two colours written as rgb(r, g, b)."""

    def luminance(text: str) -> float:
        parts = [int(part) / 255 for part in text.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_picture_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "secret.png")
    (tmp_path / "study").mkdir()
    assert inside(tmp_path / "study", "../secret.png") is None
    assert inside(tmp_path / "study", str(tmp_path / "secret.png")) is None
    assert inside(tmp_path, "secret.png") == tmp_path / "secret.png"
    (tmp_path / "text.png").write_bytes(b"secret")
    assert inside(tmp_path, "text.png") is None


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has format 3, this vizrobust reads 1 and 2"):
        write_study(tmp_path, {"format": 3})


def test_tables_hold_every_row_of_the_report(tmp_path: Path) -> None:
    report = full_report(tmp_path, seeds=1, doses=(0, 4), names=("tench",))
    study = StudyGroups(report)
    trends = study_tables.estimates(study, ["primary"])
    assert trends is not None
    assert len(trends.rows) == sum(row["role"] == "primary" for row in report["trends"])
    effort = study_tables.activation_and_distance(study)
    assert effort is not None
    assert effort.rows[0] == ["K = 0", "plain", "logits", "2.6", "3"]
    every = study_tables.clarity(study)
    assert every is not None
    assert all(len(row) == len(every.header) for row in every.rows)


def test_tables_of_contrasts_matches_and_paths(tmp_path: Path) -> None:
    """Means over training seeds, flags counted, and a reason where there is no number."""
    report = full_report(tmp_path, seeds=2, doses=(0, 4), recipes=("plain",))
    report["verdict"]["by_contrast"] = [{"layer": "conv2", "contrast": "H2", "verdict": "inconclusive"}]
    report["matching"] = [
        {"checkpoint": f"k4-s{seed}", "reference": f"k0-s{seed}", "drawn": 0.5 + 0.1 * seed, "quality": 0.7, "chance": 0.2}
        for seed in range(2)
    ]
    paths = {"k0-s0": 0.9, "k0-s1": 0.1, "k4-s0": None}
    report["path_similarity"] = [
        {"checkpoint": name, "recipe": "plain", "layer": "conv2", "value": value, "flagged": value == 0.1}
        | {"why": "" if value else "too alike"}
        for name, value in paths.items()
    ]
    study = StudyGroups(report)
    contrasts, matching, lines = (table(study) for table in (study_tables.contrasts, study_tables.matching, study_tables.paths))
    assert contrasts is not None
    assert matching is not None
    assert lines is not None
    assert contrasts.rows == [[study_tables.CONTRASTS["H2"], "conv2", "inconclusive"]]
    assert matching.rows == [["K = 4", "0.55", "0.7", "0.2"]]
    assert lines.rows == [["K = 0", "plain", "conv2", "0.5", "flagged: 1 of 2"], ["K = 4", "plain", "conv2", "-", "too alike"]]
    bare = StudyGroups({**report, "matching": [], "path_similarity": [], "verdict": {}})
    assert study_tables.contrasts(bare) is study_tables.matching(bare) is study_tables.paths(bare) is None
