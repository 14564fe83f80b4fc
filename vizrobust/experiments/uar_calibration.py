"""Calibrating UAR: how robust the best adversarially trained network is against each attack, on the data at hand."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from torch import nn

from vizrobust.attacks import Attack, family
from vizrobust.compute import Compute, versions
from vizrobust.data import DataSet, head
from vizrobust.intervals import share
from vizrobust.legacy import present
from vizrobust.models import Checkpoint
from vizrobust.results import Progress
from vizrobust.robustness import evaluate, merge_results
from vizrobust.runs import Row, RunFolder, digest, read_run, slug, write_json
from vizrobust.spec import spec, vary
from vizrobust.training import Trainer, TrainingRecipe, attacks_of, own_content, train, trained_checkpoint

# The six distortion sizes of UAR (Kang et al. 2019), each twice the one before.
SIZES, FACTOR = 6, 2.0
# The anchors end at four times the data set's usual eps, as CIFAR-10's 32/255 for 8/255, but below what greys all images.
ABOVE_USUAL, LARGEST_ANCHOR = 4, 0.4
PROTOCOL = "an image counts as right if it is so clean and at every iterate; untargeted unless the attack says otherwise"
PROBED_IMAGES, LARGEST_EXPONENT = 100, 12
TASK = "epochs and tests"


@spec
@dataclass(frozen=True)
class Plan:
    """What a calibration depends on.

    `recipe` is how every network is trained, with another attack each time; `attacks` are the attack types, whose
    eps is the largest candidate (None: found on an anchor network, see `largest_eps`), and `anchor` the type that they
    are matched with. Of each type `candidates` radii are trained and tested, each twice the one before; of the anchor
    six. Tests take `steps` steps on the first `images` test images.
    """

    recipe: TrainingRecipe
    attacks: tuple[Attack, ...]
    anchor: Attack
    candidates: int = 7
    steps: int = 50
    images: int = 500

    def __post_init__(self) -> None:
        if self.recipe.attack is not None:
            raise ValueError(f"Plan: the recipe must be without an attack, got {self.recipe.attack}")
        if not self.attacks:
            raise ValueError("Plan: give at least one attack to calibrate")
        for attack in (*self.attacks, self.anchor):
            if not isinstance(attack, Attack):
                raise ValueError(f"Plan: {attack!r} is not an attack")
            if attack.threat_model()[1] == 0:
                raise ValueError(f"Plan: the largest eps of {attack} must be above 0")
        names = [family(attack) for attack in (self.anchor, *self.attacks)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"Plan: {twice[0]} is given twice (the anchor counts); give each once")
        if self.candidates < SIZES:
            raise ValueError(f"Plan: candidates must be at least {SIZES}, of which {SIZES} are chosen, got {self.candidates}")
        if self.images < 1 or self.steps < 1:
            raise ValueError(f"Plan: images and steps must be at least 1, got {self.images} and {self.steps}")


@dataclass(frozen=True)
class Table:
    """What was found for one attack type: ``accuracy[i][j]`` of the network trained at ``eps[i]`` under ``eps[j]``."""

    attack: Attack
    eps: tuple[float, ...]
    accuracy: tuple[tuple[float, ...], ...]
    trainings: tuple[str, ...]
    weights: tuple[str, ...]

    @property
    def ata(self) -> tuple[float, ...]:
        """ATA(A, eps): the accuracy at each eps of the network that is best there."""
        return tuple(max(column) for column in zip(*self.accuracy, strict=True))


def eps_grid(largest: float, count: int) -> tuple[float, ...]:
    """`count` radii that end at `largest`, each twice the one before.

    >>> eps_grid(0.4, 3)
    (0.1, 0.2, 0.4)
    """
    return tuple(largest / FACTOR**k for k in reversed(range(count)))


def equally_hard(anchors: Sequence[float], candidates: Sequence[float]) -> list[int]:
    """The places of the distinct candidates whose ATA together are nearest to the anchors' ATA, in rising order.

    The assignment that makes the sum of |ATA(anchor) - ATA(candidate)| smallest (Kang et al. 2019, section 4).

    >>> equally_hard([0.9, 0.5], [0.99, 0.88, 0.87, 0.4, 0.1])
    [1, 3]
    """
    from scipy.optimize import linear_sum_assignment

    cost = np.abs(np.subtract.outer(np.array(anchors), np.array(candidates)))
    return sorted(int(place) for place in linear_sum_assignment(cost)[1])


def calibrate(
    plan: Plan, data: DataSet, compute: Compute, folder: Path | str, argv: str = "", wait: bool = False
) -> Iterator[Progress | Row]:
    """Train and test in a folder, or go on where an earlier process stopped; yields progress, and each type's result.

    Every network is a training run in ``networks/``, every test a row, every result a file in ``calibrations/``, the
    first of them the anchor's. The recipe's loss is what UAR trains with if its clean_weight is 0; unlike UAR, whose eps is
    drawn for each example from (0, eps), it is fixed after the recipe's ramp. An image counts as right if it is so clean and
    at every iterate. Raises ``ValueError`` if the folder holds a run with another plan.
    """
    default = min(ABOVE_USUAL * data.usual_eps, LARGEST_ANCHOR)
    for attack in (plan.anchor, *plan.attacks):
        # A network that cannot be built, or an attack that does not fit it, leaves no folder behind.
        Trainer(replace(plan.recipe, attack=vary(attack, eps=attack.threat_model()[1] or default)), data, compute).dry_run()
    record = {"argv": argv, "threads": compute.threads, "device": compute.device.type, "versions": versions()}
    run = RunFolder(folder, "calibrate", {"plan": repr(plan), **own_content(data, plan.recipe.arch, plan)}, record, wait=wait)
    with closing(run):
        work = _Work(plan, data, compute, run, argv)
        anchors = yield from work.table(plan.anchor, plan.anchor.threat_model()[1] or default, SIZES)
        yield _kept(run, result(plan, anchors, anchors, argv))
        for attack in plan.attacks:
            largest = attack.threat_model()[1] or work.largest_eps(attack, anchors)
            table = yield from work.table(attack, largest, plan.candidates)
            yield _kept(run, result(plan, anchors, table, argv))


def result(plan: Plan, anchors: Table, table: Table, argv: str = "") -> Row:
    """One type's calibration with its provenance: the six sizes in rising order, their ATA, and all that led to them."""
    places = equally_hard(anchors.ata, table.ata)
    return {
        "format": 1,
        "name": family(table.attack),
        "attack": repr(vary(table.attack, eps=None, steps=plan.steps)),
        "eps": [table.eps[place] for place in places],
        "ata": [table.ata[place] for place in places],
        "data": plan.recipe.data,
        "arch": plan.recipe.arch,
        "protocol": PROTOCOL,
        "images": plan.images,
        "plan": repr(plan),
        "anchors": _found(anchors),
        "candidates": _found(table),
        "versions": versions(),
        "command": argv,
        "date": datetime.now(UTC).date().isoformat(),
    }


def _kept(run: RunFolder, row: Row) -> Row:
    write_json(run.folder / "calibrations" / f"{slug(row['name'])}.json", row)
    return row


def _found(table: Table) -> Row:
    return {
        "eps": table.eps, "ata": table.ata, "accuracy": table.accuracy,
        "trainings": table.trainings, "weights_sha256": table.weights,
    }  # fmt: skip


class _Work:
    """The networks and tests of one run, each made once."""

    def __init__(self, plan: Plan, data: DataSet, compute: Compute, run: RunFolder, argv: str) -> None:
        self.plan, self.data, self.compute, self.run, self.argv = plan, data, compute, run, argv
        self.rows = {(row["weights_sha256"], present(row["attack"]), row["n"]): row for row in run.rows()}
        self.networks: dict[str, tuple[Checkpoint, nn.Module]] = {}
        sizes = [SIZES, *[plan.candidates] * len(plan.attacks)]
        self.total = sum(size * (plan.recipe.epochs + size) for size in sizes)
        self.done = 0

    def table(self, attack: Attack, largest: float, count: int) -> Generator[Progress, None, Table]:
        """Train at every radius, test every network at every radius."""
        radii = eps_grid(largest, count)
        recipes = [replace(self.plan.recipe, attack=vary(attack, eps=eps)) for eps in radii]
        found = []
        for recipe in recipes:
            yield from self._train(recipe)
        for recipe in recipes:
            row = []
            for eps in radii:
                test = vary(attack, eps=eps, steps=self.plan.steps)
                row.append(self._accuracy(recipe, test, self.plan.images))
                yield self._stage(f"{test} on {_name(recipe)}")
            found.append(tuple(row))
        weights = tuple(self.networks[repr(recipe)][0].sha256 for recipe in recipes)
        return Table(attack, radii, tuple(found), tuple(map(repr, recipes)), weights)

    def largest_eps(self, attack: Attack, anchors: Table) -> float:
        """Twice the smallest power of 2 at which the anchor network that is best on average falls to chance.

        A network that is trained against the attack bears more than one that is not.
        """
        best = max(range(len(anchors.eps)), key=lambda i: sum(anchors.accuracy[i]))
        recipe = replace(self.plan.recipe, attack=vary(anchors.attack, eps=anchors.eps[best]))
        chance = 1 / len(self.data.classes)

        def falls(exponent: int) -> bool:
            return self._accuracy(recipe, vary(attack, eps=2.0**exponent, steps=self.plan.steps), PROBED_IMAGES) <= chance

        exponent = 0
        while falls(exponent) and exponent > -LARGEST_EXPONENT:
            exponent -= 1
        while not falls(exponent):
            exponent += 1
            if exponent > LARGEST_EXPONENT:
                raise ValueError(f"{attack} breaks too few images even at eps {2**LARGEST_EXPONENT}; name the largest eps in it")
        return FACTOR * 2.0**exponent

    def _train(self, recipe: TrainingRecipe) -> Iterator[Progress]:
        """A network for the recipe, from its folder where it is finished."""
        if repr(recipe) in self.networks:
            return
        folder = self._folder(recipe)
        before = self.done
        for event in train(recipe, self.data, self.compute, folder, self.argv):
            if isinstance(event, dict):
                self.done = before + int(event["epoch"])
                yield Progress(TASK, self.done, self.total, f"epoch {event['epoch']} of {_name(recipe)}")
        self.done = before + recipe.epochs
        checkpoint = trained_checkpoint(folder, recipe.arch)
        self.networks[repr(recipe)] = checkpoint, checkpoint.net()

    def _folder(self, recipe: TrainingRecipe) -> Path:
        """The folder of the recipe's network: the one that holds it, also under old names, or a new one."""
        networks, name, text = self.run.folder / "networks", slug(_name(recipe)), repr(recipe)
        for folder in sorted(networks.glob(f"{name}-*")):
            recorded = (read_run(folder) or {}).get("identity", {}).get("training")
            if present(recorded) == present(text):
                return folder
        return networks / f"{name}-{digest(text)}"

    def _accuracy(self, recipe: TrainingRecipe, attack: Attack, n: int) -> float:
        """The network's accuracy under the attack on the first n test images."""
        checkpoint, net = self.networks[repr(recipe)]
        images = head(self.data.test, n)
        key = (checkpoint.sha256, present(repr(attack)), len(images))
        if key not in self.rows:
            began = time.perf_counter()
            found = merge_results(attack, list(evaluate(net, attack, images, self.compute.in_fp32())))
            row = {"training": repr(recipe), "weights_sha256": key[0], "attack": repr(attack), "n": key[2]}
            row |= {"clean": found.clean, "accuracy": share(found.robust), "seconds": time.perf_counter() - began}
            self.run.add(row)
            self.rows[key] = row
        return float(self.rows[key]["accuracy"])

    def _stage(self, what: str) -> Progress:
        self.done += 1
        return Progress(TASK, self.done, self.total, what)


def _name(recipe: TrainingRecipe) -> str:
    """Such as ``L2 1.5``."""
    (attack,) = attacks_of(recipe.attack)
    return f"{family(attack)} {attack.threat_model()[1]:g}"
