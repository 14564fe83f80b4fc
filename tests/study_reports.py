"""Synthetic studies: folders with pictures and the report.json that a page reads: full, quick, partial or hostile."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from vizrobust.intervals import wilson
from vizrobust.runs import write_png

SCRIPT = "<script>alert(1)</script>"
DOSES = (0, 1, 2, 4, 8, 16)
ARMS = ("fgsm", "fast", "noise")
CONTROLS = ("k0-early", "k8-eps/4")
RECIPES = ("plain", "fourier")
JUDGES = ("judge-standard", "judge-robust", "judge-heavy")
METRICS = [
    {"name": "transfer", "title": "Transfer to a judge (log-odds)", "role": "primary", "direction": 1, "chance": None},
    {"name": "forced_choice", "title": "Hard two-alternative AUC", "role": "primary", "direction": 1, "chance": 0.5},
    {"name": "identification", "title": "Identification", "role": "secondary", "direction": 1, "chance": 0.1},
    {"name": "neighbour", "title": "Distance to natural images", "role": "secondary", "direction": -1, "chance": None},
    {"name": "spectrum", "title": "Spectrum distance", "role": "diagnostic", "direction": -1, "chance": None},
]
UNIT_NAMES = ("tench", "English springer", "cassette player", "chain saw", "church", "French horn", "garbage truck", "gas pump")


def full_report(
    folder: Path,
    *,
    seeds: int = 3,
    doses: tuple[int, ...] = DOSES,
    names: tuple[str, ...] = UNIT_NAMES,
    side: int = 16,
    channels: int = 3,
    image_seeds: int = 1,
    recipes: tuple[str, ...] = RECIPES,
) -> dict[str, Any]:
    """A whole study whose numbers are functions of K, unit and seed alone; its pictures are in `folder`.

    Unit u's score at K is ``(1 + rank of K) * (1 + u % 3) + u / 100``, so every order by score is known.
    """
    rng = np.random.default_rng(0)
    cells = [(f"k{k}", f"K = {k}", "dose", k) for k in doses]
    cells += [(name, name, "arm", None) for name in ARMS] + [(name, name, "control", None) for name in CONTROLS]
    report: dict[str, Any] = _frame(seeds, names, (channels, side, side), recipes)
    for group, label, role, k in cells:
        amount = _amount(group, k)
        for seed in range(seeds):
            name = f"{group}-s{seed}"
            noise = float(rng.normal(0, 0.03))
            report["checkpoints"].append(_checkpoint(name, f"{label}, seed {seed}", role, group, k, seed, amount))
            report["accuracy"] += _accuracies(name, amount, k in (1, 2) or group == "fgsm", noise)
            report["clarity"] += _clarity(name, amount, len(names), noise, recipes)
            report["attribution"] += [
                {"checkpoint": name, "method": method, "measure": "gini", "values": [level + noise, None, level - 0.1 * amount]}
                for method, level in (("Saliency()", 0.5), ("SmoothGrad(samples=9)", 0.7))
            ]
            report["effective_features"].append({"checkpoint": name, "layer": "stage4", "value": 9 + 4 * amount + noise})
            for recipe in recipes:
                report["excitation"].append(
                    {"checkpoint": name, "recipe": recipe, "layer": "logits", "ratio": 2.6 - amount, "radius": 3 + 8 * amount}
                )
                report["distance"] += [
                    {
                        "checkpoint": name,
                        "recipe": recipe,
                        "judge": judge,
                        "step": step,
                        "distance": step**0.5 * (1 + amount),
                        "value": 0.5 + (0.1 + 0.3 * amount) * (1 - math.exp(-step / 30)) + noise / 5,
                    }
                    for judge in JUDGES
                    for step in (0, 8, 32, 128)
                ]
                if role != "control" and seed == 0:
                    report["pictures"] += _pictures(folder, name, recipe, names, image_seeds, amount, k, (channels, side))
    report["exemplars"] = [_exemplars(folder, unit, (channels, side)) for unit in range(len(names))]
    report["confounds"] = [
        {
            "group": group,
            "clean": 0.97 - 0.02 * _amount(group, k),
            "delta_linf": None if k == 0 else 0.9,
            "delta_l2": 2.5,
            "gradient_passes": 1000.0 * (k or 1),
            "steps": k,
        }
        for group, _, _, k in cells
    ]
    return report


def quick_report(folder: Path) -> dict[str, Any]:
    """One seed, three doses, one recipe; what it left out is said."""
    report = full_report(folder, seeds=1, doses=(0, 1, 8), recipes=("plain",), names=UNIT_NAMES[:4])
    return report | {
        "quick": True,
        "scope": "descriptive",
        "left_out": ["the fourier recipe", "corruptions", "two training seeds"],
    }


def partial_report(folder: Path) -> dict[str, Any]:
    """A study that was stopped early: every list is empty, every text that may be null is null."""
    report = {key: type(value)() if isinstance(value, list) else value for key, value in _frame(1, (), (1, 4, 4), ()).items()}
    return report | {
        "checkpoints": [
            _checkpoint("k0-s0", "K = 0, seed 0", "dose", "k0", 0, 0, 0.0) | {"delta_linf": None, "gradient_passes": None}
        ],
        "verdict": None,
        "recipes": {},
        "prereg": None,
        "quick": True,
    }


def hostile_report(folder: Path) -> dict[str, Any]:
    """Every name that a user can choose holds a script."""
    report = quick_report(folder)
    rename = {"k8-s0": f"k8-{SCRIPT}"}

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: renamed(one) for key, one in value.items()}
        if isinstance(value, list):
            return [renamed(one) for one in value]
        return rename.get(value, value) if isinstance(value, str) else value

    report = renamed(report)
    for picture in report["pictures"]:
        picture["unit_name"] = f"{picture['unit_name']} {SCRIPT}"
    report["command"] += f" --out '{SCRIPT}'"
    report["data"]["name"] = SCRIPT
    report["verdict"]["sentences"][0] += SCRIPT
    report["judges"][0]["name"] = SCRIPT
    report["metrics"][0]["title"] = SCRIPT
    report["recipes"]["plain"] = f"plain({SCRIPT})"
    for row in report["clarity"]:
        row["judge"] = SCRIPT if row["judge"] == JUDGES[0] else row["judge"]
    for checkpoint in report["checkpoints"]:
        if checkpoint["group"] == "fast":
            checkpoint["group"] = SCRIPT
    return report


def _frame(seeds: int, names: tuple[str, ...], shape: tuple[int, int, int], recipes: tuple[str, ...]) -> dict[str, Any]:
    trends = [
        {
            "metric": metric["name"],
            "role": metric["role"],
            "recipe": recipe,
            "judge": judge,
            "layer": "logits",
            "contrast": contrast,
            "per_seed": [0.3] * seeds,
            "estimate": 0.31,
            "ci_low": 0.12,
            "ci_high": 0.5,
            "p": 0.01,
            "p_holm": 0.02,
            "smallest_effect": 0.05,
            "verdict": "supported" if contrast == "H1" else "inconclusive",
            "shape": "plateau" if contrast == "H2" else None,
        }
        for metric in METRICS
        if metric["role"] != "diagnostic"
        for recipe in recipes
        for judge in _judges(metric)
        for contrast in ("H1", "H2", "H3")
    ]
    by_metric = [
        {
            "metric": metric["name"],
            "recipe": recipe,
            "contrast": contrast,
            "verdict": "supported" if contrast == "H1" else "inconclusive",
            "why": "all three judges agree" if contrast == "H1" else "the interval holds 0 and the smallest effect",
        }
        for metric in METRICS[:2]
        for recipe in recipes
        for contrast in ("H1", "H2", "H3")
    ]
    return {
        "format": 1,
        "command": "vizrobust study --data imagenette64 --steps 0,1,2,4,8,16 --seeds 3 --out runs/study",
        "versions": {"vizrobust": "0.1.0", "torch": "2.15.0"},
        "threads": 2,
        "device": "cpu",
        "prereg": {"sha256": "c" * 64, "content": {"steps": [0, 1]}, "departures": ["seed 2 of K = 16 was trained twice"]},
        "data": {"name": "imagenette64", "classes": list(names), "shape": list(shape), "eps": 4 / 255, "test_images": 1000},
        "scope": "inferential",
        "quick": False,
        "left_out": [],
        "checkpoints": [],
        "accuracy": [],
        "metrics": METRICS,
        "clarity": [],
        "attribution": [],
        "effective_features": [],
        "references": _references(recipes),
        "distance": [],
        "excitation": [],
        "trends": trends,
        "judges": [
            {
                "name": name,
                "kind": name.removeprefix("judge-"),
                "disqualified": None,
                "natural_identification": 0.8,
                "clean": 0.75,
            }
            for name in JUDGES
        ],
        "verdict": {
            "sentences": [
                "Pictures of adversarially trained networks are clearer than those of the standard one.",
                "From one step on clarity does not grow further with K: a plateau.",
            ],
            "overall": "H1 supported, H2 inconclusive, H3 inconclusive",
            "by_metric": by_metric,
        },
        "confounds": [],
        "pictures": [],
        "exemplars": [],
        "recipes": {name: f"{name}(steps=256, size={shape[1]}, transforms=())" for name in recipes},
        "rows_sha256": "d" * 64,
    }


def _amount(group: str, k: int | None) -> float:
    """How clear and robust a cell is, 0 to 1."""
    return {"fgsm": 0.4, "fast": 0.55, "noise": 0.15, "k0-early": 0.05, "k8-eps/4": 0.5}.get(group, math.log2(1 + (k or 0)) / 4.1)


def _checkpoint(name: str, label: str, role: str, group: str, k: int | None, seed: int, amount: float) -> dict[str, Any]:
    masked = k in (1, 2) and seed < 2
    return {
        "name": name,
        "label": label,
        "role": role,
        "group": group,
        "k": k,
        "seed": seed,
        "weights_sha256": f"{hash_of(name):064x}",
        "training": f"Training(attack=PGD(steps={k}), seed={seed})",
        "clean": 0.97 - 0.02 * amount,
        "delta_linf": 0.9,
        "delta_l2": 2.5,
        "gradient_passes": 1000 * (k or 1),
        "epochs": 25,
        "masked": {"verdict": "masked: overfitted to its training attack", "why": "PGD-50 finds 60 points more"}
        if masked
        else {"verdict": "sound", "why": ""},
    }


def hash_of(name: str) -> int:
    return sum(ord(letter) * 257**place for place, letter in enumerate(name))


def _accuracies(name: str, amount: float, masked: bool, noise: float) -> list[dict[str, Any]]:
    robust = (0.15 if masked else 0.9) * amount
    rows = [("clean", "clean", 0.97 - 0.02 * amount, 0), ("fgsm", "FGSM", 0.08 + 0.8 * min(1, 3 * amount), 1)]
    rows += [("pgd", f"PGD-{steps}", robust * (1 + 1 / steps), steps) for steps in (10, 50)]
    rows += [("strongest", "APGD targeted", robust, 100)]
    rows += [
        ("unforeseen", label, 0.2 + 0.35 * robust * part, 50) for label, part in (("Fog", 0.8), ("Snow", 1.1), ("L2 PGD", 1.4))
    ]
    rows += [("corruption", label, 0.9 - part, None) for label, part in (("fog", 0.5), ("shot noise", 0.2), ("contrast", 0.6))]
    found = []
    for kind, label, share, steps in rows:
        right = round(1000 * min(1.0, max(0.0, share + noise / 2)))
        low, high = wilson(right, 1000)
        found.append(
            {
                "checkpoint": name,
                "kind": kind,
                "label": label,
                "attack": f"{label}()",
                "eps": None if kind == "corruption" else 4 / 255,
                "steps": steps,
                "n": 1000,
                "accuracy": right / 1000,
                "ci_low": low,
                "ci_high": high,
            }
        )
    return found


def _judges(metric: dict[str, Any]) -> tuple[str | None, ...]:
    return JUDGES if metric["role"] == "primary" else (None,)


def _clarity(name: str, amount: float, units: int, noise: float, recipes: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = []
    for metric in METRICS:
        for recipe in recipes:
            for place, judge in enumerate(_judges(metric)):
                for control in (None, "contrast", "blur", "equal-excitation") if metric["role"] == "primary" else (None,):
                    level = (
                        metric["direction"] * (0.5 + 0.4 * min(amount, 0.6) + noise) + 0.04 * place - 0.05 * (control == "blur")
                    )
                    level += 0.03 * (recipe == "fourier") + (1.5 if metric["direction"] < 0 else 0)
                    values: list[float | None] = [level + 0.02 * (unit - (units - 1) / 2) for unit in range(units)]
                    rows.append(
                        {
                            "checkpoint": name,
                            "recipe": recipe,
                            "metric": metric["name"],
                            "judge": judge,
                            "control": control,
                            "layer": "logits",
                            "units": list(range(units)),
                            "values": values,
                        }
                    )
    return rows


def _references(recipes: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = []
    for metric in METRICS:
        lower = metric["direction"] < 0
        for judge in _judges(metric):
            common = {"metric": metric["name"], "judge": judge, "control": None, "layer": "logits"}
            rows.append({"reference": "natural", "recipe": None, "value": 0.6 if lower else 0.87, **common})
            for place, recipe in enumerate(recipes):
                value = (1.2 if lower else 0.42) + 0.03 * place
                rows.append({"reference": "random network", "recipe": recipe, "value": value, **common})
            rows.append({"reference": "before optimization", "recipe": None, "value": 1.3 if lower else 0.36, **common})
    return rows


def _pictures(
    folder: Path,
    checkpoint: str,
    recipe: str,
    names: tuple[str, ...],
    image_seeds: int,
    amount: float,
    k: int | None,
    form: tuple[int, int],
) -> list[dict[str, Any]]:
    rows = []
    for unit, unit_name in enumerate(names):
        for seed in range(image_seeds):
            path = f"pictures/{checkpoint}/{recipe}/logits/{unit}-s{seed}.png"
            write_png(folder / path, drawn(unit, amount, seed, form), {})
            rank = DOSES.index(k) if k in DOSES else 2
            status = "saturated" if (unit, k) == (1, 0) else "ok"
            rows.append(
                {
                    "checkpoint": checkpoint,
                    "recipe": recipe,
                    "layer": "logits",
                    "unit": unit,
                    "unit_name": unit_name,
                    "seed": seed,
                    "image": path,
                    "score": (1 + rank) * (1 + unit % 3) + unit / 100,
                    "saturated_share": 0.02,
                    "status": status,
                    "scores": {"transfer": 0.1 * unit - amount},
                }
            )
    return rows


def _exemplars(folder: Path, unit: int, form: tuple[int, int]) -> dict[str, Any]:
    paths = [f"exemplars/logits/{unit}-{rank}.png" for rank in range(9)]
    for rank, path in enumerate(paths):
        write_png(folder / path, drawn(unit, 1.3, 100 + rank, form), {})
    return {"layer": "logits", "unit": unit, "images": paths}


def drawn(unit: int, amount: float, seed: int, form: tuple[int, int]) -> np.ndarray[Any, Any]:
    """A picture (side, side, 3) or (side, side) uint8: the unit's own shape in noise, the more of it the larger `amount`."""
    channels, side = form
    rng = np.random.default_rng(1000 * unit + seed)
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    angle = unit * 0.7
    wave = np.sin((3 + unit) * (x * np.cos(angle) + y * np.sin(angle)) * 4 + seed) * np.exp(-6 * (x**2 + y**2))
    color = np.array([np.sin(unit + shift) for shift in (0.0, 2.1, 4.2)][:channels])
    clear = wave[..., None] * color * 0.9
    noisy = rng.normal(0, 0.32, (side, side, channels))
    share = min(1.0, 0.12 + amount)
    pixels = np.clip(127.5 * (1 + share * clear + (1 - 0.9 * share) * noisy), 0, 255).astype(np.uint8)
    return pixels if channels == 3 else pixels[..., 0]
