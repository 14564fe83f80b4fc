"""The options that several commands share, each written once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

# Written out here, because asking torch would make every --help slow; a test compares them with compute.py.
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("fp32", "bf16")


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in the order in which help shows them."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


refs = click.argument("refs", nargs=-1, metavar="[REF]...")
some_refs = click.argument("refs", nargs=-1, required=True, metavar="REF...")
arch = click.option("--arch", metavar="REF", help="Your network's code, path/to/file.py:callable, for checkpoints that need it.")
data = click.option("--data", metavar="REF", help="Data set (vizrobust list data); default: the checkpoint's own.")
download = click.option("--download", is_flag=True, help="Allow downloads of data sets and published weights.")
out = click.option("--out", type=click.Path(), metavar="DIR", help="Run folder; default: runs/<command>-<hash>.")
seed = click.option("--seed", default=0, show_default=True, help="Seed of all random numbers.")
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object per line on stdout.")
quiet = click.option("--quiet", is_flag=True, help="No progress display.")
machine = together(
    click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True),
    click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True),
)


class Number(click.ParamType[float]):
    """A number, also written as a fraction: 8/255."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float | int):
            return float(value)
        top, slash, bottom = str(value).partition("/")
        try:
            return float(top) / float(bottom) if slash else float(top)
        except (ValueError, ZeroDivisionError):
            self.fail(f"{value!r} is not a number such as 0.3 or 8/255", param, ctx)


eps = click.option("--eps", type=Number(), help="Radius of the attack's ball in [0, 1] pixels; default: the data set's.")
norm = click.option("--norm", metavar="NAME", help="Norm of the attack's ball: Linf, L2 or L1.")

running = together(seed, out, download, machine, as_json, quiet)
layer = click.option("--layer", default="logits", show_default=True, help="Layer by name (vizrobust layers REF).")
recipe = click.option(
    "--recipe", "recipe_text", default="plain", show_default=True, help="By name (vizrobust list recipes) or a whole spec."
)
batch_size = click.option(
    "--batch-size", type=int, help="Pictures rendered together, recorded; default: as many as there are, at most 16."
)
render_steps = click.option("--steps", type=int, help="Render steps; default: the recipe's.")
size = click.option("--size", type=int, help="Picture size; default: the network's input.")
pictures = together(
    layer,
    click.option("--units", metavar="LIST", help="all, 0:16 or 3,7,11; default: all of at most 20, else 0:16."),
    recipe,
    batch_size,
    click.option("--judge", metavar="REF", help="Outside judge of clarity; default: the data set's own."),
    data,
    arch,
)


def reconstruction(recipe: str) -> Callable[[F], F]:
    """What `invert` and `caricature` share, in the order of help."""
    return together(
        click.argument("refs", nargs=-1, required=True, metavar="REF..."),
        click.argument("image"),
        click.option("--layer", "layers", multiple=True, metavar="NAME", help="Several allowed; default: up to six of them."),
        click.option("--recipe", "recipe_text", default=recipe, show_default=True, help="A recipe's name, or a whole spec."),
        click.option("--steps", type=int, help="Render steps; default: the recipe's."),
        click.option("--size", type=int, help="Picture size; default: the network's input."),
        seeds(1),
        click.option("--batch-size", default=1, show_default=True, help="Seeds rendered at once; recorded, as it is part of it."),
        data,
        arch,
    )


def seeds(default: int) -> Callable[[F], F]:
    return click.option("--seeds", default=default, show_default=True, help="Pictures of each unit, from different noise.")
