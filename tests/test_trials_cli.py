"""`vizrobust trials` from page to score: a person's session in a browser, and one sentence for what cannot be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.test_gallery_page import until
from tests.trial_studies import make_study
from vizrobust.cli import main

TRIALS = 8


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["trials", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"), hidden=False)


@pytest.fixture(scope="module")
def made(folder: Path) -> dict[str, Any]:
    done = run(folder, "--out", folder.parent / "trials.html", "--trials", TRIALS, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def key(folder: Path, made: dict[str, Any]) -> dict[str, Any]:
    return json.loads((folder / "trials-key.json").read_text())["pages"][made["token"]]


@pytest.fixture
def page(browser: Any, made: dict[str, Any], request: pytest.FixtureRequest) -> Iterator[Any]:
    width, height = getattr(request, "param", (1280, 800))
    context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
    opened = context.new_page()
    problems: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda one: asked.append(one.url))
    opened.goto(Path(made["page"]).as_uri())
    yield opened
    assert problems == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()


def begin(page: Any) -> None:
    page.locator("#start").click()


def number(page: Any) -> str:
    return page.locator("#number").inner_text()


def saved(page: Any, press: Any, to: Path) -> Path:
    with page.expect_download() as download:
        press()
    download.value.save_as(to)
    return to


def test_a_page_is_made_and_says_what_to_do_next(folder, made, tmp_path):
    assert (made["trials"], made["catch"], made["references"]) == (TRIALS, 2, 4)
    assert made["checkpoints"] == ["k0-s0", "k8-s0"]
    done = run(folder, "--out", tmp_path / "again.html", "--trials", TRIALS)
    assert done.exit_code == 0, done.output
    assert f"page: {tmp_path / 'again.html'}" in done.stdout
    assert f"--answers answers-{made['token']}.json" in done.stderr
    assert (tmp_path / "again.html").read_text() == Path(made["page"]).read_text()


def test_all_trials_by_keyboard_then_the_score(folder, page, key, tmp_path):
    """Practice first; then right about k8-s0 and the catch trials, wrong about k0-s0."""
    page.keyboard.press("Enter")  # the button that lets one try has the focus
    right = page.evaluate("JSON.parse(document.getElementById('content').textContent).practice.belongs")
    assert number(page) == "Practice"
    page.keyboard.press({"left": "ArrowRight", "right": "ArrowLeft"}[right])
    page.keyboard.press("3")
    assert page.locator("#told").inner_text().startswith(f"Not this one: the {right} image excites the unit.")
    assert page.locator(".query.right").get_attribute("data-side") == right
    page.keyboard.press("3")  # it is over: only the button that begins goes on
    page.keyboard.press("Enter")
    other = {"left": "right", "right": "left"}
    for place, trial in enumerate(key["trials"]):
        assert number(page) == f"{place + 1} of {len(key['trials'])}"
        page.keyboard.press("2")  # nothing is chosen yet, so nothing is answered
        assert number(page) == f"{place + 1} of {len(key['trials'])}"
        side = other[trial["answer"]] if trial["checkpoint"] == "k0-s0" else trial["answer"]
        page.keyboard.press({"left": "ArrowRight", "right": "ArrowLeft"}[side])  # a change of mind
        page.keyboard.press({"left": "ArrowLeft", "right": "ArrowRight"}[side])
        assert page.locator('.query[aria-pressed="true"]').get_attribute("data-side") == side
        page.keyboard.press(str(1 + place % 3))
    assert page.locator("#done").is_visible()
    assert not page.locator("#kept").is_visible()
    file = saved(page, lambda: page.keyboard.press("Enter"), tmp_path / "answers.json")
    given = json.loads(file.read_text())
    assert [answer["trial"] for answer in given["answers"]] == [trial["id"] for trial in key["trials"]]
    assert [answer["confidence"] for answer in given["answers"]] == [1 + place % 3 for place in range(len(key["trials"]))]
    assert all(0 <= answer["seconds"] < 60 for answer in given["answers"])

    done = run(folder, "--answers", file, "--json")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    shares = {row["name"]: (row["right"], row["n"]) for row in rows if "right" in row}
    assert shares == {"k0-s0": (0, 4), "k8-s0": (4, 4), "catch trials": (2, 2)}
    transfer = next(row for row in rows if row.get("metric") == "transfer")
    assert transfer["rho"] > 0  # the report's values are larger for k8-s0
    shown = run(folder, "--answers", file)
    for words in ("catch trials", "100.0 %", "51.0 to 100.0", "0.0 to 49.0", "smaller", "rank correlation"):
        assert words in shown.output, words


@pytest.mark.slow
def test_mouse_and_a_reload_go_on_where_it_stopped(page, key):
    begin(page)
    for _ in range(3):
        assert page.locator("[data-sure]:disabled").count() == 3
        page.locator(".query").first.click()
        page.locator("[data-sure='3']").click()
    page.reload()
    assert number(page) == f"4 of {len(key['trials'])}"
    assert page.locator('.query[aria-pressed="true"]').count() == 0
    assert page.locator("#bar").evaluate("bar => bar.value") == 3


@pytest.mark.slow
def test_another_person_starts_afresh_after_saving(page, key, tmp_path):
    begin(page)
    for _ in key["trials"]:
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("3")
    assert page.locator("#again").is_disabled()
    saved(page, lambda: page.locator("#save").click(), tmp_path / "one.json")
    page.locator("#again").click()
    assert page.locator("#intro").is_visible()
    page.reload()
    assert page.locator("#intro").is_visible()


@pytest.mark.slow
def test_the_unit_s_pictures_stand_where_the_title_says(page, key):
    begin(page)
    for trial in key["trials"]:
        own = page.locator(".side.own")
        assert own.get_attribute("id") == trial["exciting_side"]
        assert own.locator("h2").inner_text() == "These excite it"
        assert page.locator(".side:not(.own) h2").inner_text() == "These do not"
        assert page.locator(".side img").count() == len(trial["exciting"]) + len(trial["other"])
        until(page, "[...document.querySelectorAll('#trial img')].every(image => image.naturalWidth > 0)")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("1")


SMALL = [pytest.param(size, marks=pytest.mark.slow) for size in ((320, 640), (844, 390))]


@pytest.mark.parametrize("page", [(390, 844), (1440, 900), *SMALL], indirect=True)
def test_a_screen_holds_the_whole_question_with_large_pictures(page: Any) -> None:
    begin(page)
    width, height = page.viewport_size["width"], page.viewport_size["height"]
    # Then as if there were nine pictures on each side.
    for many in (False, True):
        if many:
            page.evaluate(
                """[...document.querySelectorAll(".pictures")].forEach(box => {
                    for (let n = box.children.length; n < 9; n++) box.append(box.firstElementChild.cloneNode());
                }); window.dispatchEvent(new Event("resize"))"""
            )
        assert page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [width, height]
        inside = """([what, around]) => [...document.querySelectorAll(what)].every(one => {
            const a = one.getBoundingClientRect();
            const b = around ? one.closest(around).getBoundingClientRect() : new DOMRect(0, 0, innerWidth, innerHeight);
            return a.width > 0 && a.left >= b.left && a.right <= b.right && a.top >= b.top && a.bottom <= b.bottom;
        })"""
        for what, around in ((".side, .query, [data-sure]", ""), (".side img", ".pictures"), (".query img", ".query")):
            assert page.evaluate(inside, [what, around]), what
        # Eight pixels of a picture, each as large as a whole number of the screen's.
        size = page.locator(".query img").first.bounding_box()["width"]
        assert size % 8 == 0
        assert size >= {390: 140, 1440: 250, 320: 96, 844: 120}[width]


def test_without_storage_the_page_warns_and_works(browser: Any, made: dict[str, Any]) -> None:
    opened = browser.new_page()
    opened.add_init_script("Object.defineProperty(window, 'localStorage', {get() { throw new Error('off') }})")
    opened.goto(Path(made["page"]).as_uri())
    assert opened.locator("#memory").is_visible()
    begin(opened)
    opened.keyboard.press("ArrowLeft")
    opened.keyboard.press("3")
    assert number(opened).startswith("2 of ")
    opened.close()


@pytest.mark.slow
def test_storage_that_holds_something_else_is_not_believed(page, made, key):
    place = f"vizrobust-trials-{made['token']}"
    for wrong in ("{", '"text"', '[{"trial": "nonsense"}]', "[null]", "7"):
        page.evaluate("([place, text]) => localStorage.setItem(place, text)", [place, wrong])
        page.reload()
        assert page.locator("#intro").is_visible()


BAD = {
    "neither": ([], 2, "say what to do: --out trials.html makes a page"),
    "both": (["--out", "a.html", "--answers", "b.json"], 2, "say what to do"),
    "no page": (["--out", "page.pdf"], 1, "--out 'page.pdf' must end in .html"),
    "unknown checkpoint": (["--out", "a.html", "--checkpoints", "k0-s0,k9-s0"], 1, "no checkpoint with pictures of logits"),
    "no answers": (["--answers", "nowhere.json"], 1, "no file 'nowhere.json'"),
    "no trials": (["--out", "a.html", "--trials", "0"], 1, "--trials must be at least 1, got 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case, folder, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args, code, words = BAD[case]
    done = run(folder, *args)
    assert done.exit_code == code
    assert words in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_study_is_said(tmp_path):
    done = run(tmp_path, "--out", tmp_path / "a.html")
    assert done.exit_code == 1
    assert "give the folder of a finished study (vizrobust study)" in done.output
