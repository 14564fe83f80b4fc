"""Figures of a study: the report's numbers at the right places, its means and intervals against plain ones, nothing cut off."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from tests.study_reports import ARMS, DOSES, JUDGES, SCRIPT, full_report, partial_report
from vizrobust.report.study_clarity_figures import (
    clarity_against_accuracy,
    clarity_distance,
    clarity_over_k,
    controls_over_k,
    natural_scale_over_k,
    shades,
)
from vizrobust.report.study_data import StudyGroups, over_seeds, range_over_seeds
from vizrobust.report.study_figures import accuracy_over_k, corruptions_over_k, ratios, unforeseen_over_k
from vizrobust.report.study_page import study_sheet
from vizrobust.report.study_sections import secondary_over_k, secondary_table, secondary_values
from vizrobust.report.style import house_style, save_figure
from vizrobust.study import StudyReport

GALLERY = Path(__file__).parent.parent / "gallery"

FIGURES: dict[str, Callable[[StudyGroups], Figure | None]] = {
    "accuracy": accuracy_over_k,
    "unforeseen": unforeseen_over_k,
    "corruptions": corruptions_over_k,
    "primary": lambda study: clarity_over_k(study, "primary", "logits"),
    "secondary": lambda study: clarity_over_k(study, "secondary", "logits"),
    "diagnostic": lambda study: clarity_over_k(study, "diagnostic", "logits"),
    "controls": lambda study: controls_over_k(study, "logits"),
    "distance": clarity_distance,
    "secondary outcomes": secondary_over_k,
    "against accuracy": lambda study: clarity_against_accuracy(study, "logits"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    return full_report(folder, names=("tench", "church", "gas pump"))


@pytest.fixture(scope="module")
def study(report: dict[str, Any]) -> StudyGroups:
    return StudyGroups(report)


def drawn(axes: Axes, label_color: str | None = None) -> list[list[float]]:
    """The heights of the lines that have a mark at each dose."""
    return [list(line.get_ydata()) for line in axes.lines if len(line.get_xdata()) == len(DOSES)]


def texts(figure: Figure) -> list[str]:
    return [text.get_text().replace("\n", " ") for axes in figure.axes for text in axes.texts]


def test_groups_are_in_order_with_the_sweep_on_the_axis_and_baselines_beside_it(study: StudyGroups) -> None:
    assert [group.k for group in study.swept] == list(DOSES)
    assert [group.name for group in study.baselines] == list(ARMS)
    assert [group.role for group in study.groups[-2:]] == ["control", "control"]
    assert [group.masked for group in study.swept] == [0, 2, 2, 0, 0, 0]
    shuffled = StudyGroups({**study.report, "checkpoints": study.report["checkpoints"][::-1]})
    assert [group.k for group in shuffled.swept] == list(DOSES)


@pytest.mark.parametrize("n", [3, 5])
def test_the_interval_over_seeds_is_scipys(n: int) -> None:
    values = list(np.random.default_rng(n).normal(size=n))
    spread = over_seeds(values)
    low, high = stats.t.interval(0.95, n - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (spread.mean, spread.low, spread.high, spread.seeds) == (
        pytest.approx(np.mean(values)),
        pytest.approx(low),
        pytest.approx(high),
        n,
    )


def test_fewer_seeds_have_a_range_or_nothing() -> None:
    assert (over_seeds([2.0, 1.0]).low, over_seeds([2.0, 1.0]).high) == (1.0, 2.0)
    assert over_seeds([2.0]).low is None
    assert (range_over_seeds([3.0, 1.0, 2.0]).low, range_over_seeds([3.0, 1.0, 2.0]).high) == (1.0, 3.0)


def test_clarity_is_the_mean_over_units_then_seeds_and_leaves_out_what_is_missing(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    mine = [
        row for row in changed["clarity"]
        if (row["metric"], row["recipe"], row["judge"], row["control"]) == ("transfer", "plain", JUDGES[1], None)
    ]  # fmt: skip
    mine[0]["values"][1] = None
    found = StudyGroups(changed).clarity("transfer", "plain", JUDGES[1], "logits")
    by_seed = [np.mean([v for v in row["values"] if v is not None]) for row in mine if row["checkpoint"].startswith("k0-s")]
    assert len(by_seed) == 3
    assert found["k0"].mean == pytest.approx(np.mean(by_seed))
    assert set(found) == {group.name for group in StudyGroups(changed).groups}


def test_an_excluded_judge_does_not_count_and_is_named_as_excluded(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    changed["judges"][2]["disqualified"] = "ranks the random network above natural images"
    study = StudyGroups(changed)
    mean = study.over_judges("transfer", "plain", "logits")["k4-s1"]
    each = [study.by_checkpoint("transfer", "plain", judge, "logits")["k4-s1"] for judge in JUDGES]
    assert mean == pytest.approx(np.mean(each[:2]))
    assert mean != pytest.approx(np.mean(each))
    figure = clarity_over_k(study, "primary", "logits")
    assert figure is not None
    assert sum("excluded" in axes.get_title(loc="left") for axes in figure.axes) == 2


def test_accuracy_over_k_has_a_line_per_attack_the_arms_and_the_masked(study: StudyGroups) -> None:
    figure = accuracy_over_k(study)
    assert figure is not None
    axes = figure.axes[0]
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks == [*map(str, DOSES), *ARMS]
    # Lines: clean, FGSM, PGD-10, PGD-50, strongest; each with the mean over three seeds.
    lines = drawn(axes)
    assert len(lines) == 5
    rows = [row for row in study.report["accuracy"] if row["label"] == "PGD-50"]
    means = [100 * np.mean([row["accuracy"] for row in rows if row["checkpoint"].startswith(f"k{k}-s")]) for k in DOSES]
    assert lines[3] == pytest.approx(means)
    assert {"clean", "FGSM", "PGD-10", "PGD-50", "strongest found"} <= set(texts(figure))
    assert texts(figure).count("masked 2 of 3") == 2


def test_one_seed_has_the_reports_wilson_interval(folder: Path) -> None:
    one = StudyGroups(full_report(folder / "one", seeds=1, names=("tench",)))
    rows = {row["checkpoint"]: row for row in one.report["accuracy"] if row["kind"] == "strongest"}
    (series,) = one.accuracies("strongest")
    assert series.spreads["k8"].low == rows["k8-s0"]["ci_low"]
    assert series.spreads["k8"].high == rows["k8-s0"]["ci_high"]


def test_attacks_at_another_eps_are_not_in_the_figure(report: dict[str, Any]) -> None:
    other = [{**row, "eps": 8 / 255, "accuracy": 0.0} for row in report["accuracy"] if row["kind"] == "strongest"]
    changed = StudyGroups({**report, "accuracy": [*report["accuracy"], *other]})
    assert changed.accuracies("strongest") == StudyGroups(report).accuracies("strongest")


def test_the_ratio_is_of_the_means_and_leaves_out_what_would_be_chance(study: StudyGroups) -> None:
    found = ratios(study)
    rows = {(row["checkpoint"], row["label"]): row["accuracy"] for row in study.report["accuracy"]}
    of_seed = [
        np.mean([rows[f"k8-s{seed}", label] for label in ("Fog", "Snow", "L2 PGD")]) / rows[f"k8-s{seed}", "APGD targeted"]
        for seed in range(3)
    ]
    assert found["k8"].mean == pytest.approx(np.mean(of_seed))
    assert (found["k8"].low, found["k8"].high) == (pytest.approx(min(of_seed)), pytest.approx(max(of_seed)))
    assert "k0" not in found
    figure = unforeseen_over_k(study)
    assert figure is not None
    assert "the lecture: “roughly half”" in texts(figure)


def test_clarity_over_k_has_a_panel_per_judge_and_the_references(study: StudyGroups) -> None:
    figure = clarity_over_k(study, "primary", "logits")
    assert figure is not None
    assert [axes.get_title(loc="left").split("\n")[1] for axes in figure.axes] == [f"judge: {name}" for name in JUDGES] * 2
    axes = figure.axes[0]
    expected = [study.clarity("transfer", recipe, JUDGES[0], "logits") for recipe in ("plain", "fourier")]
    assert drawn(axes) == [pytest.approx([series[f"k{k}"].mean for k in DOSES]) for series in expected]
    straight = sorted({round(line.get_ydata()[0], 6) for line in axes.lines if len(line.get_xdata()) == 2})
    assert straight == pytest.approx([0.36, 0.42, 0.45, 0.87])
    named = {"plain", "fourier", "natural", "before optimization", "random network, plain", "random network, fourier"}
    assert named <= set(texts(figure))


def test_the_natural_scale_is_drawn_over_steps_and_over_radii() -> None:
    """On the committed study of radii, against plain means: over units, judges of a family, families, seeds."""
    own, five = (StudyGroups(StudyReport.read(GALLERY / name)) for name in ("imagenette-controls", "imagenette-study"))
    figure = natural_scale_over_k(own)
    assert figure is not None
    over_k, over_eps, _curves = figure.axes
    assert [text.get_text() for text in over_eps.get_xticklabels()] == ["0", "1/255", "2/255", "4/255", "8/255", "12/255"]
    families = {judge["name"]: judge["family"] for judge in own.report["judges"] if not judge["disqualified"]}
    expected = []
    for group in ("k0", "eps1-255", "eps2-255", "k1", "eps8-255", "eps12-255"):
        of: dict[str, list[float]] = {}
        for row in own.report["clarity"]:
            if row["metric"] == "natural_equivalent" and row["judge"] in families and row["control"] is None:
                name, _, seed = row["checkpoint"].rpartition("-s")
                if name == group:
                    of.setdefault(f"{families[row['judge']]} {seed}", []).append(float(np.mean(row["values"])))
        expected.append(np.mean([np.mean(values) for values in of.values()]))
    thick = [line for line in over_eps.lines if line.get_linewidth() > 2 and len(line.get_xdata()) == 6]
    assert [list(line.get_ydata()) for line in thick] == [pytest.approx(expected)]
    assert over_k.get_title(loc="left") == "plain"
    # A study without radii has no such panel, but may show those of another.
    alone, both = natural_scale_over_k(five), natural_scale_over_k(five, own)
    assert alone is not None
    assert both is not None
    assert [len(one.axes) for one in (alone, both)] == [2, 3]
    assert [text.get_text() for text in both.axes[0].get_xticklabels()] == ["0", "1", "2", "4", "8"]


def test_the_distance_curve_is_the_mean_over_seeds_and_judges(study: StudyGroups) -> None:
    figure = clarity_distance(study)
    assert figure is not None
    rows = [row for row in study.report["distance"] if row["checkpoint"].startswith("k16-s") and row["recipe"] == "plain"]
    expected = [np.mean([row["value"] for row in rows if row["step"] == step]) for step in (0, 8, 32, 128)]
    lines = [list(line.get_ydata()) for line in figure.axes[0].lines if len(line.get_xdata()) == 4]
    assert len(lines) == len(DOSES)
    assert lines[-1] == pytest.approx(expected)


def test_secondary_outcomes_have_a_thin_line_for_each_seed_and_their_mean(study: StudyGroups, report: dict[str, Any]) -> None:
    figure = secondary_over_k(study)
    assert figure is not None
    maps, features = figure.axes
    rows = [row for row in report["attribution"] if row["method"] == "SmoothGrad(samples=9)"]
    seeds = [
        [np.mean([row["values"][i] for i in (0, 2)]) for k in DOSES for row in rows if row["checkpoint"] == f"k{k}-s{seed}"]
        for seed in range(3)
    ]
    assert np.array(drawn(maps)[4:]) == pytest.approx(np.array([*seeds, np.mean(seeds, 0)]))
    assert len(drawn(features)) == 4
    assert {"Saliency", "SmoothGrad(samples=9)", "stage4"} <= set(texts(figure))


def test_the_table_of_secondary_outcomes_has_intervals_of_scipy(study: StudyGroups, report: dict[str, Any]) -> None:
    table = secondary_table(study)
    assert table is not None
    assert list(table.header) == ["outcome", "of", "H1", "H2", "training seeds"]
    assert [row[1] for row in table.rows] == ["Saliency", "SmoothGrad(samples=9)", "stage4"]
    value = {row["checkpoint"]: row["value"] for row in report["effective_features"]}
    per_seed = [np.mean([value[f"k{k}-s{seed}"] for k in DOSES[1:]]) - value[f"k0-s{seed}"] for seed in range(3)]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(per_seed), scale=stats.sem(per_seed))
    assert table.rows[2][2] == f"{np.mean(per_seed):.3g} [{low:.3g}, {high:.3g}]"
    values = secondary_values(study)
    assert values is not None
    assert values.rows[2][2] == f"{np.mean([value[f'k0-s{seed}'] for seed in range(3)]):.3g}"


def test_more_steps_are_darker() -> None:
    brightness = [sum(int(color[i : i + 2], 16) * part for i, part in ((1, 0.3), (3, 0.59), (5, 0.11))) for color in shades(6)]
    assert brightness == sorted(brightness, reverse=True)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_nothing_cut_off(study: StudyGroups, name: str, tmp_path: Path) -> None:
    figure = FIGURES[name](study)
    assert figure is not None
    figure.set_dpi(50)
    with house_style():
        save_figure(figure, tmp_path / "figure.png", "the command")
    with Image.open(tmp_path / "figure.png") as image:
        pixels = np.asarray(image.convert("L"))
        assert image.text["Command"] == "the command"
    border = np.concatenate([pixels[:2].ravel(), pixels[-2:].ravel(), pixels[:, :2].ravel(), pixels[:, -2:].ravel()])
    assert border.min() == 255


def test_a_figure_is_the_same_twice(study: StudyGroups, tmp_path: Path) -> None:
    contents = []
    for turn in range(2):
        figure = accuracy_over_k(study)
        assert figure is not None
        with house_style():
            contents.append(save_figure(figure, tmp_path / f"{turn}.svg").read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_measured_is_no_figure(name: str, tmp_path: Path) -> None:
    assert FIGURES[name](StudyGroups(partial_report(tmp_path))) is None


def test_given_checkpoints_without_k_are_marks(report: dict[str, Any]) -> None:
    given = [{**one, "role": "given", "k": None, "group": one["name"]} for one in report["checkpoints"][:2]]
    figure = accuracy_over_k(StudyGroups({**report, "checkpoints": given}))
    assert figure is not None
    assert len(figure.axes[0].get_xticks()) == 2


def test_two_given_checkpoints_of_one_k_keep_their_names(report: dict[str, Any]) -> None:
    given = [{**one, "role": "given", "group": one["name"]} for one in report["checkpoints"][:4]]
    assert [group.label for group in StudyGroups({**report, "checkpoints": given}).swept] == ["k0-s0", "k0-s1", "k0-s2", "K = 1"]


def test_the_sheet_has_the_pictures_of_each_k_below_each_other(study: StudyGroups, folder: Path, tmp_path: Path) -> None:
    path = study_sheet(tmp_path / "sheet.png", study, folder, "plain", "logits")
    assert path is not None
    with Image.open(path) as image:
        sheet = np.asarray(image.convert("RGB"))
    places = []
    for k in DOSES:
        with Image.open(folder / f"pictures/k{k}-s0/plain/logits/2-s0.png") as image:
            factor = round(196 / image.width)
            tile = np.asarray(image.convert("RGB")).repeat(factor, 0).repeat(factor, 1)
        # Where the tile's first row of pixels stands, and then all of it.
        rows, columns = np.nonzero((sheet[: -len(tile), : -len(tile)] == tile[0, 0]).all(2))
        places += [
            (y, x) for y, x in zip(rows, columns, strict=True)
            if np.array_equal(sheet[y, x : x + len(tile)], tile[0])
            and np.array_equal(sheet[y : y + len(tile), x : x + len(tile)], tile)
        ]  # fmt: skip
    assert len(places) == len(DOSES)
    assert len({x for _, x in places}) == 1
    assert [y for y, _ in places] == sorted(y for y, _ in places)


def test_the_sheet_of_a_missing_recipe_is_none_and_hostile_names_are_drawn(
    report: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    assert study_sheet(tmp_path / "sheet.png", StudyGroups(report), folder, "other", "logits") is None
    assert list(tmp_path.iterdir()) == []
    named = {**report, "pictures": [{**row, "unit_name": f"{SCRIPT} $x$ 犬"} for row in report["pictures"]]}
    assert study_sheet(tmp_path / "sheet.png", StudyGroups(named), folder, "fourier", "logits", baselines=True) is not None
    with pytest.raises(ValueError, match=r"must end in \.png"):
        study_sheet(tmp_path / "sheet.svg", StudyGroups(report), folder, "plain", "logits")
