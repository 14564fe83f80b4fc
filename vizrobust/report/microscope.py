"""What the run folder of `microscope` holds, by layer, checkpoint and unit, and where each page of its site is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vizrobust.report.collect import CheckpointFacts, Collection, Column, Panel, Picture, collect
from vizrobust.runs import read_run, slug
from vizrobust.spec import number_text

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
        """By attack steps, then by eps; those without steps behind."""
        unknown = max((one.attack_steps or 0 for one in self.collection.checkpoints), default=0) + 1

        def place(one: CheckpointFacts) -> tuple[int, float]:
            return (unknown if one.attack_steps is None else one.attack_steps), one.eps or 0.0

        return tuple(sorted(self.collection.checkpoints, key=place))

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

    def _of_layers(self, kind: str) -> dict[tuple[str, str], dict[str, Any]]:
        """The facts of one kind about each layer of each checkpoint."""
        return {
            (one.id, layer): read_facts(self.folder, f"{kind}-{one.id}-{slug(layer)}.json")
            for one in self.checkpoints
            for layer in self.layers
        }

    @cached_property
    def _facts(self) -> dict[tuple[str, str], dict[str, Any]]:
        return self._of_layers("layer")

    @cached_property
    def _attribution(self) -> dict[tuple[str, str], dict[str, Any]]:
        return self._of_layers("attribution")

    @cached_property
    def _words(self) -> dict[tuple[str, str], dict[str, Any]]:
        return self._of_layers("words")

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

    def attribution(self, checkpoint: CheckpointFacts, layer: str, unit: int) -> dict[str, Any]:
        """Where the pixels are that a unit's activation comes from, and of how many of its exemplars."""
        return dict(self._attribution[checkpoint.id, layer].get("units", {}).get(str(unit), {}))

    def word(self, checkpoint: CheckpointFacts, layer: str, unit: int) -> dict[str, Any]:
        """The word that is a unit's label, with its area on images held out, and by which network; empty without one."""
        facts = self._words[checkpoint.id, layer]
        found = facts.get("units", {}).get(str(unit))
        return {} if found is None else {**found, "by": facts["by"]}

    def masking(self, checkpoint: CheckpointFacts) -> dict[str, Any]:
        """The verdict on its gradients, where it was asked for."""
        return read_facts(self.folder, f"masking-{checkpoint.id}.json")

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


def slider(known: Sequence[CheckpointFacts]) -> tuple[str, list[str]]:
    """What a slider over networks goes through, and what stands at each: K, eps where K is the same, or both.

    >>> some = [CheckpointFacts("a", "a", attack_steps=8, eps=8 / 255), CheckpointFacts("b", "b", attack_steps=0)]
    >>> slider(some), slider([*some, CheckpointFacts("c", "c", attack_steps=8, eps=0.5)])[1]
    (('network, by attack steps K', ['8', '0']), ['8/255', '0', '0.5'])
    """
    over, steps = "network, by attack steps K", [one.attack_steps for one in known]
    if None in steps:
        return over, [one.name if k is None else str(k) for one, k in zip(known, steps, strict=True)]
    radii = [one.eps if one.attack_steps else 0.0 for one in known]
    texts = ["" if eps is None else "0" if eps == 0 else number_text(eps) for eps in radii]
    if len(set(steps)) == len(steps) or None in radii or len(set(zip(steps, radii, strict=True))) < len(steps):
        return over, [str(k) for k in steps]
    if len(set(filter(None, steps))) <= 1:
        return "network, by eps of training", texts
    return f"{over} and eps", [f"{k}: {text}" for k, text in zip(steps, texts, strict=True)]


def layer_page(layer: str) -> str:
    return f"layers/{quote(slug(layer))}.html"


def unit_page(layer: str, unit: int) -> str:
    return f"units/{quote(slug(layer))}/{unit}.html"


def class_page(number: int) -> str:
    return f"classes/{number}.html"
