"""Natural exemplars in the gallery page: their sizes, and for each unit the two grids that the template shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from vizrobust.report.collect import Column, Panel, Picture, Subject
from vizrobust.report.naturals import Natural, Naturals
from vizrobust.report.wording import ENDS, ends

AIM, SMALLEST, GAP = 168, 40, 2


@dataclass(frozen=True)
class NaturalCells:
    """Lengths in CSS pixels: `tile` of an image, `across` of them beside each other; `smooth` where they are reduced."""

    panel: Panel = field(repr=False)
    across: int = 0
    tile: int = 0
    smooth: bool = False

    @staticmethod
    def of(panel: Panel) -> NaturalCells:
        units = [one for one in panel.naturals.values() if one.count]
        if not units:
            return NaturalCells(panel)
        largest = max(units, key=lambda one: one.count)
        across = largest.shape[1]
        aim = max(SMALLEST, AIM // across)
        with Image.open(next(iter(largest.ends.values()))[0].file) as image:
            side = image.size[0]
        # Whole multiples keep the pixels square.
        tile = max(1, round(aim / side)) * side if side <= 1.5 * aim else aim
        return NaturalCells(panel, across, tile, side > tile)

    @property
    def width(self) -> int:
        return self.across * self.tile + max(0, self.across - 1) * GAP

    def ends(
        self, subject: Subject, column: Column, source: Callable[[Picture | Natural], str], facts: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The unit's grids as the template wants them; `facts` grows by one entry per image."""
        naturals = self.panel.naturals_of(subject, column)
        if naturals is None:
            return []
        grids = []
        for sign in ends(self.panel):
            images = []
            for natural in naturals.ends.get(sign, ()):
                facts.append(_facts(self.panel, natural, naturals, subject.name, column))
                with Image.open(natural.file) as image:
                    width, height = image.size
                mark = _mark(natural, width, height)
                images.append({"index": len(facts) - 1, "source": source(natural), "mark": mark, "natural": natural})
            grids.append({"title": f"{ENDS[sign]} exciting", "images": images})
        return grids


def _mark(natural: Natural, width: int, height: int) -> dict[str, Any] | None:
    """Class and style of the outline or the cross."""
    if natural.box is not None:
        top, left, tall, wide = natural.box
        shares = {"top": top / height, "left": left / width, "height": tall / height, "width": wide / width}
        return {"kind": "box", "style": "; ".join(f"{name}: {100 * share:.2f}%" for name, share in shares.items())}
    if natural.center is not None:
        return {"kind": "cross", "style": f"top: {100 * natural.center[0]:.2f}%; left: {100 * natural.center[1]:.2f}%"}
    return None


def _facts(panel: Panel, natural: Natural, naturals: Naturals, name: str, column: Column) -> dict[str, Any]:
    """What the enlarged image says about itself."""
    pairs = {
        "activation": f"{natural.value:.4g}",
        "rank": f"{natural.rank} from the {'top' if natural.sign > 0 else 'bottom'} of {naturals.source}",
        "label": natural.label,
        "index": str(natural.index),
        "layer and unit": f"{panel.layer}, unit {column.unit}{f', position {column.place}' if column.position else ''}",
        "place": _place(natural),
        "file": natural.name,
    }
    return {
        "title": f"{name} · {panel.label(column)} · {ENDS[natural.sign]} exciting",
        "pairs": [[key, value] for key, value in pairs.items() if value],
        "trajectory": (),
    }


def _place(natural: Natural) -> str:
    if natural.place is None or natural.map is None:
        return "" if natural.map is None else "several cells of the map share this value"
    return f"row {natural.place[0]}, column {natural.place[1]} of {natural.map[0]} x {natural.map[1]}"
