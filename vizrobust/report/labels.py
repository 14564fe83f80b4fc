"""Labels beside lines: at the height where a line ends, moved apart where they would touch, long texts broken."""

from __future__ import annotations

import re
from collections.abc import Sequence

from matplotlib.axes import Axes

from vizrobust.report.style import COLORS

SIZE, APART, WIDTH = 9.5, 5.4, 30
TITLE_WIDTH = 90  # in characters


def label_ends(axes: Axes, labels: Sequence[str], ends: Sequence[float]) -> None:
    """Each line's label at the right edge, at the height (0 to 100) where it ends, moved apart where they would touch."""
    title, names = shared(labels)
    if title:
        axes.set_title(broken(title, TITLE_WIDTH), loc="left", fontsize=10, pad=12)
    texts = [broken(label, WIDTH) for label in names]
    heights = [APART * (1 + text.count("\n")) for text in texts]
    for index, y in enumerate(apart(ends, heights)):
        if not texts[index]:
            continue  # a single line's label is the title
        color = COLORS[index % len(COLORS)]
        axes.plot([1, 1.025], [ends[index], y], transform=axes.get_yaxis_transform(), color=color, linewidth=1.2, clip_on=False)
        axes.text(1.033, y, texts[index], transform=axes.get_yaxis_transform(), va="center", fontsize=SIZE, linespacing=1.15)


def shared(labels: Sequence[str]) -> tuple[str, list[str]]:
    """What all labels ``name, attack`` have in common, which is said once, and what tells them apart.

    >>> shared(["k1, PGD()", "k2, PGD()"]), shared(["k1, FGSM()", "k1, PGD()"]), shared(["k1, FGSM()"])
    (('PGD()', ['k1', 'k2']), ('k1', ['FGSM()', 'PGD()']), ('k1, FGSM()', ['']))
    """
    if len(labels) == 1:
        return labels[0], [""]
    pairs = [label.partition(", ") for label in labels]
    names, rest = [name for name, _, _ in pairs], [rest for _, _, rest in pairs]
    if len(set(rest)) == 1 and rest[0]:
        return rest[0], names
    if len(set(names)) == 1 and all(rest):
        return names[0], rest
    return "", list(labels)


def apart(wanted: Sequence[float], heights: Sequence[float], within: tuple[float, float] = (-1, 101)) -> list[float]:
    """Centres as near to the wanted ones as they can be without overlap, in the same order from below.

    They stay `within` these bounds, so that labels of lines that end at 0 do not run into what stands below the axis.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    groups: list[tuple[list[int], float]] = []  # members from below, and the group's centre

    def placed_group(members: list[int]) -> tuple[list[int], float]:
        half = sum(heights[m] for m in members) / 2
        centre = sum(wanted[m] for m in members) / len(members)
        return members, max(within[0] + half, min(within[1] - half, centre))

    for i in order:
        groups.append(placed_group([i]))
        while len(groups) > 1 and _top(groups[-2], heights) > _bottom(groups[-1], heights):
            (upper, _), (lower, _) = groups.pop(), groups.pop()
            groups.append(placed_group(lower + upper))
    placed = [0.0] * len(wanted)
    for members, centre in groups:
        y = centre - sum(heights[m] for m in members) / 2
        for m in members:
            placed[m] = y + heights[m] / 2
            y += heights[m]
    return placed


def broken(text: str, width: int) -> str:
    """The text in lines of about `width` characters, broken after spaces, commas and hyphens where there are any."""
    lines = [""]
    for part in re.findall(r"[^\s,\-]+[,\-]*\s*|\S+\s*", text):
        while part:
            if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
                lines.append("")
            lines[-1] += part[: width + 1]
            part = part[width + 1 :]
    return "\n".join(line.strip() for line in lines)


def _top(group: tuple[list[int], float], heights: Sequence[float]) -> float:
    return group[1] + sum(heights[m] for m in group[0]) / 2


def _bottom(group: tuple[list[int], float], heights: Sequence[float]) -> float:
    return group[1] - sum(heights[m] for m in group[0]) / 2
