"""The axis of a study's figures: K evenly spaced with 0 first, named arms beside it, bands, labels at the lines' ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from vizrobust.report.labels import apart, broken
from vizrobust.report.study_numbers import Group, Series, Study
from vizrobust.report.style import FAINT, MARK

K_AXIS = "attack steps K used in training (0: standard training)"
BAND = 0.16
ARM_PITCH = 0.8
LINE = 1.22  # of a label's size


@dataclass(frozen=True)
class Steps:
    """Where each group stands: doses at 0, 1, 2, …, the arms behind a gap of `gap` places that holds the lines' names."""

    doses: tuple[Group, ...]
    arms: tuple[Group, ...]
    gap: float = 0.0

    @staticmethod
    def of(study: Study, arms: bool = True, gap: float = 0.0) -> Steps:
        return Steps(study.doses, study.arms if arms else (), gap)

    @property
    def places(self) -> dict[str, float]:
        first_arm = len(self.doses) - 1 + self.gap + 0.9 if self.doses else 0.0
        places = {group.name: float(index) for index, group in enumerate(self.doses)}
        return places | {group.name: first_arm + ARM_PITCH * index for index, group in enumerate(self.arms)}

    @property
    def end(self) -> float:
        """The last dose's place."""
        return max(0, len(self.doses) - 1)

    def dress(self, axes: Axes, labelled: bool = True, marked: bool = False, size: float = 10) -> None:
        """Ticks, limits, the line before the arms, and with `marked` a column behind masked checkpoints."""
        places = self.places
        names = [_tick(group) for group in self.doses] + [broken(group.label, 9) for group in self.arms]
        axes.set_xticks(list(places.values()), names if labelled else [""] * len(names), fontsize=size)
        right = max([*places.values(), self.end + self.gap]) if places else 0.0
        axes.set_xlim(-0.35, right + 0.4)
        if self.doses and self.arms:
            axes.axvline(places[self.arms[0].name] - 0.5, color=FAINT, linewidth=0.8)
        for group in (*self.doses, *self.arms) if marked else ():
            if group.masked:
                x = places[group.name]
                axes.axvspan(x - 0.3, x + 0.3, color=MARK, alpha=0.1, linewidth=0, zorder=0)
                count = f"\n{group.masked} of {len(group.checkpoints)}" if len(group.checkpoints) > 1 else ""
                axes.text(
                    x, 1.015, f"masked{count}", transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=7.5,
                    color=MARK, linespacing=1.1,
                )  # fmt: skip

    def draw(
        self, axes: Axes, series: Series, *, scale: float = 1.0, shift: float = 0.0, thin: bool = False, **look: Any
    ) -> None:
        """One series: a line with its band over the doses, marks with their intervals over the arms."""
        places, color = self.places, look["color"]
        doses = [(places[group.name], series[group.name]) for group in self.doses if group.name in series]
        xs, ys = [x for x, _ in doses], [scale * spread.mean for _, spread in doses]
        banded = [(x, scale * one.low, scale * one.high) for x, one in doses if one.low is not None and one.high is not None]
        if not thin and len(banded) > 1:
            edge, low, high = (list(side) for side in zip(*banded, strict=True))
            axes.fill_between(edge, low, high, color=color, alpha=BAND, linewidth=0, zorder=2)
        elif not thin and banded:
            axes.vlines(*banded[0], color=color, linewidth=1.4, alpha=0.6, zorder=2)
        look = {"linewidth": 1.8, "markersize": 5.5, "clip_on": False, "zorder": 3, **look}
        axes.plot(xs, ys, **look)
        for group in self.arms:
            if group.name not in series:
                continue
            x, spread = places[group.name] + shift, series[group.name]
            axes.plot([x], [scale * spread.mean], **{**look, "linestyle": "none"})
            if spread.low is not None and spread.high is not None and not thin:
                axes.vlines(x, scale * spread.low, scale * spread.high, color=color, linewidth=1.4, alpha=0.6, zorder=2)

    def last(self, series: Series) -> float | None:
        """The mean where the line over the doses ends."""
        there = [series[group.name].mean for group in self.doses if group.name in series]
        return there[-1] if there else None


def label_lines(
    axes: Axes, x: float, entries: Sequence[tuple[float, str, str]], tall: float, *, size: float = 9.5, width: int = 24,
    leader: float = 0.2, room: bool = True,
) -> None:  # fmt: skip
    """Texts (height, text, colour) right of `x`, at their heights or moved apart; the axes are about `tall` inches tall.

    A line of length `leader` joins each label with the height that it names; x and leader are in the axis's own units.
    Without `room` the layout makes none for the texts: they stand where a panel is missing.
    """
    low, high = axes.get_ylim()
    wanted = [100 * (y - low) / (high - low) for y, _, _ in entries]
    texts = [broken(text, width) for _, text, _ in entries]
    line = 100 * size * LINE / 72 / tall
    joint: Mapping[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False, "zorder": 4}
    places = apart(wanted, [line * (1 + text.count("\n")) for text in texts])
    for text, (_, _, color), here, there in zip(texts, entries, wanted, places, strict=True):
        axes.plot([x, x + leader], [here / 100, there / 100], color=color, linewidth=1.0, scalex=False, scaley=False, **joint)
        axes.text(
            x + 1.3 * leader,
            there / 100,
            text,
            fontsize=size,
            va="center",
            in_layout=room,
            linespacing=1.12,
            color=color,
            **joint,
        )


def _tick(group: Group) -> str:
    return str(group.k) if group.label == f"K = {group.k}" else broken(group.label, 9)
