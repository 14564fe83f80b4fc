"""A sweep: one recipe at several numbers of attack steps and training seeds, each cell a run of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vizrobust.spec import unknown
from vizrobust.training.recipe import Training


def cells(
    recipe: Callable[[int | None, int], Training], steps: Sequence[int | None], seeds: Sequence[int]
) -> dict[str, Training]:
    """The cells by name, seed by seed; `recipe` gives the recipe for K (None: the attack's own) and a training seed.

    >>> of = lambda k, seed: Training(arch="small_cnn", data="digits", seed=seed)
    >>> list(cells(of, [0, 8], [0, 1]))
    ['k0-s0', 'k8-s0', 'k0-s1', 'k8-s1']
    """
    return {_name(recipe(k, seed), k): recipe(k, seed) for seed in seeds for k in steps}


def chosen(cells: dict[str, Training], which: str) -> str:
    """The name of one cell, itself or its number from 0 on (a job array's); ``ValueError`` where there is none.

    >>> of = lambda k, seed: Training(arch="small_cnn", data="digits", seed=seed)
    >>> chosen(cells(of, [0, 8], [0, 1]), "2")
    'k0-s1'
    """
    names = list(cells)
    if which.isdecimal():
        if int(which) >= len(names):
            raise ValueError(f"no cell {which}; there are {len(names)}, from 0 ({names[0]}) to {len(names) - 1} ({names[-1]})")
        return names[int(which)]
    if which not in cells:
        raise ValueError(unknown(which, names, "cell"))
    return which


def _name(recipe: Training, k: int | None) -> str:
    how = [] if recipe.method is None else [type(recipe.method).__name__.lower()]
    if k is not None:
        how.append(f"k{k}")
    elif recipe.method is None:
        how.append(type(recipe.attack).__name__.lower() if recipe.attack is not None else "k0")
    return "-".join([*how, f"s{recipe.seed}"])
