"""What the run folder of `microscope` holds, by layer, checkpoint and unit, and where each page of its site is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vizrobust.report.collect import CheckpointFacts, Collection, Column, Panel, Picture, collect
from vizrobust.runs import read_run, slug

FACTS = "facts"


def read_facts(folder: Path, name: str) -> dict[str, Any]:
    """A file of facts; empty where there is none, or it is damaged: facts can be computed again."""
    try:
        found = json.loads((folder / FACTS / name).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Site:
    """What the run folder of a microscope holds, by layer, checkpoint and unit."""

    folder: Path
    collection: Collection
    info: Mapping[str, Any] = field(repr=False)

    @classmethod
    def read(cls, folder: Path | str) -> Site:
        return cls(Path(folder), collect([folder]), read_run(folder) or {})

    @cached_property
    def checkpoints(self) -> tuple[CheckpointFacts, ...]:
        """By attack steps, those without behind."""
        unknown = max((one.attack_steps or 0 for one in self.collection.checkpoints), default=0) + 1
        return tuple(
            sorted(self.collection.checkpoints, key=lambda one: unknown if one.attack_steps is None else one.attack_steps)
        )

    @cached_property
    def networks(self) -> dict[str, list[dict[str, Any]]]:
        """The layers of each checkpoint, in the order in which they run."""
        return {one.id: read_facts(self.folder, f"network-{one.id}.json").get("layers", []) for one in self.checkpoints}

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The layers that have pictures, in the order in which they run."""
        order = [entry["name"] for listed in self.networks.values() for entry in listed]
        there = dict.fromkeys(panel.layer for panel in self.collection.panels if panel.sign > 0)
        return tuple(sorted(there, key=lambda name: order.index(name) if name in order else len(order)))

    @cached_property
    def panels(self) -> dict[tuple[str, int], Panel]:
        return {(panel.layer, panel.sign): panel for panel in self.collection.panels}

    @cached_property
    def _facts(self) -> dict[tuple[str, str], dict[str, Any]]:
        return {
            (one.id, layer): read_facts(self.folder, f"layer-{one.id}-{slug(layer)}.json")
            for one in self.checkpoints
            for layer in self.layers
        }

    @cached_property
    def _clarity(self) -> dict[str, dict[str, Any]]:
        return {layer: read_facts(self.folder, f"clarity-{slug(layer)}.json") for layer in self.layers}

    @cached_property
    def _matching(self) -> dict[str, dict[str, Any]]:
        return {layer: read_facts(self.folder, f"matching-{slug(layer)}.json").get("found", {}) for layer in self.layers}

    @cached_property
    def examples(self) -> dict[str, dict[str, Any]]:
        """The adversarial examples of each checkpoint, with the attack that made them."""
        return {one.id: read_facts(self.folder, f"classes-{one.id}.json") for one in self.checkpoints}

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Of the checkpoints, where all have the same; otherwise none."""
        found = {one.classes for one in self.checkpoints}
        return found.pop() if len(found) == 1 else ()

    def units(self, layer: str) -> list[int]:
        return [column.unit for column in self.panels[layer, 1].columns]

    def pictures(self, checkpoint: CheckpointFacts, layer: str, unit: int, sign: int = 1) -> tuple[Picture, ...]:
        panel = self.panels.get((layer, sign))
        return () if panel is None else panel.pictures(checkpoint, Column(unit))

    def facts(self, checkpoint: CheckpointFacts, layer: str) -> dict[str, Any]:
        """What was found out about a layer as a whole: on how many images, whether classes depend on it linearly."""
        return self._facts[checkpoint.id, layer]

    def unit(self, checkpoint: CheckpointFacts, layer: str, unit: int) -> dict[str, Any]:
        return dict(self.facts(checkpoint, layer).get("units", {}).get(str(unit), {}))

    def clarity(self, checkpoint: CheckpointFacts, layer: str, unit: int) -> dict[str, Any]:
        return dict(self._clarity[layer].get("units", {}).get(checkpoint.id, {}).get(str(unit), {}))

    def judge(self, layer: str) -> str:
        return str(self._clarity[layer].get("judge", ""))

    def match(self, one: CheckpointFacts, other: CheckpointFacts, layer: str, unit: int) -> tuple[int, float, float] | None:
        """The unit of `other` that matches, the correlation of the two, and that of unrelated units."""
        matching = self._matching[layer].get(f"{one.id} {other.id}", {})
        pair = matching.get("pairs", {}).get(str(unit))
        return None if pair is None else (pair[0], pair[1], matching["chance"])

    def reference(self, checkpoint: CheckpointFacts) -> str:
        """What the command line calls the checkpoint."""
        return str(self.info.get("checkpoints", {}).get(checkpoint.id, {}).get("ref") or checkpoint.name)

    def name(self, layer: str, unit: int) -> str:
        """The class of a unit of the logits, otherwise the unit's number."""
        return self.panels[layer, 1].label(Column(unit))

    def label(self, layer: str, unit: int) -> str:
        """The same where a number needs a word before it."""
        text = self.name(layer, unit)
        return f"unit {text}" if text.isdecimal() else text

    def exemplars(self, checkpoint: CheckpointFacts, layer: str, unit: int) -> Any:
        return self.panels[layer, 1].exemplars_of(checkpoint, Column(unit))


def layer_page(layer: str) -> str:
    return f"layers/{quote(slug(layer))}.html"


def unit_page(layer: str, unit: int) -> str:
    return f"units/{quote(slug(layer))}/{unit}.html"


def class_page(number: int) -> str:
    return f"classes/{number}.html"
