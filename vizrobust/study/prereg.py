"""The preregistration: what a study will do and how it will judge, written and hashed before its first picture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vizrobust.clarity import METRICS
from vizrobust.runs import write_json
from vizrobust.study.plan import Plan

FILE = "prereg.json"
CONTRASTS = {
    "H1": "mean over K >= 1 minus K = 0, for each training seed",
    "H2": "slope over log2 K among K >= 1, for each training seed: what 'grows with the number of steps' needs",
    "H3": "slope of clarity over accuracy under the strongest attack found among K >= 1, for each training seed",
}
EXCLUSIONS = (
    "a judge that identifies natural exemplars below twice chance, or ranks the random network above the natural reference",
    "a unit that never had a gradient (dead) in any compared checkpoint has no value there",
)
SMALLEST_EFFECT = "10 % of natural reference minus random network, over the range of K"
INFERENCE = (
    "one value for each K and training seed (mean over units and image seeds); 95 % t intervals over training seeds; "
    "Holm over the primary metrics; all qualified judges must agree in sign; fewer than 3 seeds: descriptive"
)


def content(plan: Plan, eps: Mapping[str, Any], checkpoints: Mapping[str, str], judges: Mapping[str, str]) -> dict[str, Any]:
    """What is fixed beforehand: `checkpoints` and `judges` map names to hashes of weights."""
    return {
        "plan": repr(plan),
        "eps": dict(eps),
        "metrics": {
            metric.name: {"role": metric.role, "direction": metric.direction, "chance": metric.chance}
            for metric in METRICS.values()
        },
        "contrasts": CONTRASTS,
        "smallest_effect": SMALLEST_EFFECT,
        "inference": INFERENCE,
        "exclusions": list(EXCLUSIONS),
        "checkpoints": dict(checkpoints),
        "judges": dict(judges),
    }


def sha256(written: Mapping[str, Any]) -> str:
    """The hash of a preregistration, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()


def register(folder: Path, now: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Write `now` if there is none yet; gives back what was written first, and how `now` departs from it."""
    path = folder / FILE
    if not path.is_file():
        write_json(path, dict(now))
        return dict(now), []
    first: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(now))
    return first, [
        f"{key} was {_short(first.get(key))}, is now {_short(now.get(key))}"
        for key in dict.fromkeys([*first, *now])
        if first.get(key) != now.get(key)
    ]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}…"
