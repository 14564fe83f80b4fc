"""Figures of robustness: in every format, the same twice, with the numbers that were given and nothing cut off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vizrobust.experiments.input_dimension import fit_growth
from vizrobust.report import style as axes_module
from vizrobust.report.measurement_figures import first_order_scatter, gradient_growth
from vizrobust.report.robustness_figures import (
    _eps_text,
    _median,
    _survivors,
    accuracy_over_eps,
    accuracy_under_attacks,
    corruption_curves,
    minimal_perturbations,
)
from vizrobust.report.style import save_figure


def shares(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "ci_low": max(0, accuracy - 0.05), "ci_high": min(1, accuracy + 0.04)}


OVER_EPS = [
    ("k0, PGD()", [{"eps": eps, **shares(0.9 - 2 * eps)} for eps in (0, 0.1, 0.3)]),
    ("k8, PGD()", [{"eps": eps, **shares(0.95 - eps)} for eps in (0.3, 0.0, 0.1)]),
]
RADII = [("k0", [0.0, 0.1, 0.2, 0.15]), ("k8 $", [0.3, np.inf, np.inf, 0.25, np.inf])]
ATTACKS = [
    ("k0", [{"attack": "clean", "foreseen": None, **shares(0.9)}, {"attack": "Fog(eps=0.5)", "foreseen": False, **shares(0.2)}]),
    ("k8", [{"attack": "PGD()", "foreseen": True, "accuracy": 0.7, "ci_low": None, "ci_high": None}]),
]
SEVERITIES = [(kind, severity) for kind in ("fog", "shot_noise", "snow") for severity in (2, 1, 3)]
CORRUPTED = [
    (name, [{"corruption": kind, "severity": s, **shares(0.9 - 0.1 * s)} for kind, s in SEVERITIES]) for name in ("k0", "k8")
]
DROPS = [("k0", [{"predicted": 1.0, "fgsm": 0.5, "pgd": 0.9}] * 3), ("k1", [{"predicted": 2e-3, "fgsm": -0.1, "pgd": 3.0}])]
GROWTH = [("margin", fit_growth([49, 196, 784], [1.0, 2.1, 3.9])), ("ce", fit_growth([49, 784], [1.0, 0.5]))]

FIGURES: list[tuple[Callable[..., Figure], Any]] = [
    (accuracy_over_eps, OVER_EPS), (minimal_perturbations, RADII), (accuracy_under_attacks, ATTACKS),
    (corruption_curves, CORRUPTED), (first_order_scatter, DROPS), (gradient_growth, GROWTH),
]  # fmt: skip


def line(axes: Axes, color: str, width: float) -> tuple[np.ndarray, np.ndarray]:
    """The data of the one line of that colour and width."""
    (found,) = (
        one for one in axes.lines if one.get_color() == color and one.get_linewidth() == width and len(one.get_xdata()) > 2
    )
    return np.asarray(found.get_xdata()), np.asarray(found.get_ydata())


@pytest.mark.parametrize(("draw", "data"), FIGURES, ids=lambda x: getattr(x, "__name__", ""))
def test_a_figure_is_a_file_with_its_command(tmp_path: Path, draw: Callable[..., Figure], data: Any) -> None:
    path = save_figure(draw(data), tmp_path / "figure.png", "vizrobust attack k0")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert b"vizrobust attack k0" in path.read_bytes()
    with pytest.raises(ValueError, match=r"a figure ends in \.png, \.svg, \.pdf"):
        save_figure(Figure(), tmp_path / "figure.jpg")
    with pytest.raises(ValueError, match="no curve to draw"):
        draw([])


def test_other_formats_and_the_same_twice(tmp_path: Path) -> None:
    names = ("a.svg", "b.svg", "c.pdf")
    paths = [save_figure(minimal_perturbations(RADII), tmp_path / name, "vizrobust attack k0") for name in names]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert b"vizrobust attack k0" in paths[0].read_bytes()
    assert paths[2].read_bytes().startswith(b"%PDF")


def test_a_figure_that_a_person_saves_embeds_its_fonts_and_shows_itself(tmp_path: Path) -> None:
    figure = minimal_perturbations(RADII)
    figure.savefig(tmp_path / "own.pdf")
    found = (tmp_path / "own.pdf").read_bytes()
    assert b"/FontFile2" in found  # TrueType, whole glyphs
    assert b"/Type3" not in found
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_accuracy_over_eps_is_drawn_in_order_and_in_percent() -> None:
    figure = accuracy_over_eps(OVER_EPS, training_eps=[0.3, 0.1, 5.0])
    (axes,) = figure.axes
    x, y = line(axes, axes_module.COLORS[1], 1.8)
    assert x.tolist() == [0, 0.1, 0.3]
    assert y == pytest.approx([95, 85, 65])
    assert axes.get_xscale() == "linear"
    texts = [text.get_text() for text in axes.texts]
    assert {"k0", "k8", "trained at 0.1", "0.3"} <= set(texts)
    assert not any("5" in text for text in texts)


def test_radii_that_would_crowd_at_the_foot_stand_on_a_logarithmic_axis() -> None:
    points = [{"eps": eps / 255, **shares(0.5)} for eps in (0, 1, 2, 4, 8, 16, 32)]
    figure = accuracy_over_eps([("k0", points)])
    (axes,) = figure.axes
    assert axes.get_xscale() == "symlog"
    figure.canvas.draw()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1/255", "2/255", "4/255", "8/255", "16/255", "32/255"]


def test_ticks_of_many_radii_do_not_touch() -> None:
    figure = accuracy_over_eps([("k0", [{"eps": k / 100, **shares(0.5)} for k in range(41)])])
    (axes,) = figure.axes
    ticks = np.asarray(axes.get_xticks())
    assert ticks[0] == 0
    assert ticks[-1] == pytest.approx(0.4)
    assert (np.diff(ticks) / 0.4 > 0.08).all()


def test_the_survival_curve_is_the_accuracy_at_each_eps() -> None:
    figure = minimal_perturbations(RADII)
    (axes,) = figure.axes
    x, y = line(axes, axes_module.COLORS[1], 1.8)
    assert dict(zip(x[:-1].tolist(), y[:-1].tolist(), strict=True)) == pytest.approx({0.0: 100, 0.25: 80, 0.3: 60})
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels == ["k0: median 0.1", "k8 $: median above 0.3"]
    with pytest.raises(ValueError, match="not a number"):
        minimal_perturbations([("k0", [0.1, np.nan])])


def test_survivors_and_median_by_hand() -> None:
    radii = np.array([0.0, 0.0, 0.1, 0.3, 0.3, np.inf])
    assert _survivors(radii, 0.5) == ([0.0, 0.1, 0.3, 0.5], [4, 3, 1, 1])
    assert _median(radii) == 0.1
    assert _median(np.array([0.2, np.inf, np.inf])) == np.inf
    assert _median(np.array([0.2, np.inf])) == 0.2


def test_attacks_stand_in_blocks_and_unforeseen_ones_are_hollow() -> None:
    figure = accuracy_under_attacks(ATTACKS)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["clean", "PGD()", "Fog(eps=0.5)"]
    dots = {round(float(one.get_xdata()[0])): one.get_markerfacecolor() for one in axes.lines if len(one.get_xdata()) == 1}
    assert dots == {90: axes_module.COLORS[0], 20: "#ffffff", 70: axes_module.COLORS[1]}
    bars = sorted(
        tuple(np.round(one.get_xdata())) for one in axes.lines if one.get_linewidth() == 1.6 and len(one.get_xdata()) == 2
    )
    assert bars == [(15, 24), (85, 94)]  # the one without bounds has none


def test_each_corruption_has_a_panel_that_starts_at_clean_accuracy() -> None:
    figure = corruption_curves(CORRUPTED, clean={"k0": 0.97, "k8": 0.91})
    assert [axes.get_title("left") for axes in figure.axes] == ["fog", "shot noise", "snow"]
    x, y = line(figure.axes[1], axes_module.COLORS[1], 1.4)
    assert x.tolist() == [0, 1, 2, 3]
    assert y == pytest.approx([91, 80, 70, 60])


def test_the_scatter_has_a_line_of_the_drops_that_are_as_predicted() -> None:
    figure = first_order_scatter(DROPS, loss="ce")
    for axes in figure.axes:
        (promise,) = (one for one in axes.lines if one.get_linewidth() == 1.0 and one.get_linestyle() == "-")
        assert np.asarray(promise.get_xdata()) == pytest.approx(np.asarray(promise.get_ydata()))
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert left < 2e-3 < 1 < right
        assert bottom < -0.1 < 3 < top
    assert figure.axes[1].get_title("left") == "k1\nmedian: PGD × 1,500, FGSM × -50.00"
    with pytest.raises(ValueError, match="not a finite number"):
        first_order_scatter([("k0", [{"predicted": 1.0, "fgsm": np.inf, "pgd": 1.0}])])


@pytest.mark.parametrize("rows", [
    [{"predicted": 0.0, "fgsm": 0.0, "pgd": 0.0}],  # no gradient anywhere
    [{"predicted": 10.0 ** -k, "fgsm": 10.0 ** -k, "pgd": 10.0**k} for k in range(6)],
    [{"predicted": 5.0, "fgsm": -4.0, "pgd": -1.0}, {"predicted": 0.0, "fgsm": 2.0, "pgd": 7.0}],
])  # fmt: skip
def test_any_drops_can_be_drawn(tmp_path: Path, rows: list[dict[str, float]]) -> None:
    assert save_figure(first_order_scatter([("k", rows)]), tmp_path / "x.png").is_file()


def test_growth_says_its_slope_and_shows_the_square_root() -> None:
    figure = gradient_growth(GROWTH)
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels[0].startswith("margin: slope 0.49 [")
    assert labels[1:] == ["ce: slope -0.25", "√d: slope 0.50"]
    (axes,) = figure.axes
    (root,) = (one for one in axes.lines if one.get_linewidth() == 1.2)
    (x0, x1), (y0, y1) = root.get_xdata(), root.get_ydata()
    assert (y1 / y0) ** 2 == pytest.approx(x1 / x0)


def test_eps_is_written_as_a_person_would() -> None:
    assert [_eps_text(eps) for eps in (0.0, 0.3, 8 / 255, 0.2, 1 / 255, 0.12345)] == [
        "0",
        "0.3",
        "8/255",
        "0.2",
        "1/255",
        "0.123",
    ]
