"""How a training run went: its curves, and the checkpoint's model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from vizrobust.intervals import wilson
from vizrobust.models import Checkpoint
from vizrobust.models.checkpoints import HALF
from vizrobust.report.style import (
    COLORS,
    FIGURE_SIZE,
    INK,
    blank,
    house_style,
    legend_of,
    percent_upwards,
    percentages,
    save_figure,
)
from vizrobust.runs import read_rows, read_run, write_text
from vizrobust.spec import parse
from vizrobust.training import METRICS_FILE, TrainingRecipe
from vizrobust.training.recipe import NAMES, is_recipe

Row = dict[str, Any]
SERIES = (("val_clean", "clean"), ("val_robust", "ten steps of PGD"), ("val_attack", "training attack"))


CURVES_FILE = "curves.png"


def draw_curves(folder: Path | str, command: str = "") -> Path | None:
    """Draw a training run's ``curves.png`` if there is none, if it is older than its rows, or if it is damaged."""
    path, source = Path(folder) / CURVES_FILE, Path(folder) / METRICS_FILE
    rows = read_rows(folder, METRICS_FILE)
    if not rows or (_is_picture(path) and path.stat().st_mtime_ns >= source.stat().st_mtime_ns):
        return None
    return save_figure(curves_figure(rows), path, command)


def curves_figure(rows: Sequence[Row]) -> Figure:
    """The rows of a run's ``metrics.jsonl``: accuracies on the watched validation images above, the loss below.

    An epoch in which robust accuracy collapsed has a line through both. Raises ``ValueError`` without rows.
    """
    if not rows:
        raise ValueError("there is no epoch to draw yet")
    with house_style():
        figure = blank((FIGURE_SIZE[0], 1.25 * FIGURE_SIZE[1]))
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        epochs = [row["epoch"] for row in rows]
        series = [(key, name) for key, name in SERIES if all(key in row for row in rows)]
        percent_upwards(above)
        above.set_ylabel("accuracy (%)")
        lines = [
            above.plot(epochs, percentages(rows, key), color=COLORS[index], marker="o", markersize=3)[0]
            for index, (key, _) in enumerate(series)
        ]
        below.plot(epochs, [row["loss"] for row in rows], color=INK)
        below.set_ylabel("training loss")
        below.set_xlabel("epoch")
        below.set_ylim(bottom=0)
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        for row in rows:
            if "collapse" in row:
                for axes in (above, below):
                    axes.axvline(row["epoch"], color=COLORS[3], linewidth=1, linestyle="--")
        legend_of(figure, lines, [name for _, name in series])
        return figure


# Options of the command that change what is shown, not what is made.
DISPLAY_ONLY = ("--quiet", "--json")


def write_card(folder: Path | str, checkpoint: Checkpoint) -> Path:
    """Write ``card.md`` beside a finished training run's checkpoint."""
    path = Path(folder) / "card.md"
    _write(path, checkpoint, folder)
    return path


def write_card_beside(file: Path | str, checkpoint: Checkpoint, run: Path | str | None = None) -> Path:
    """Write ``NAME.md`` beside a checkpoint file ``NAME.safetensors``; `run` is the folder it was trained in, if known."""
    path = Path(file).with_suffix(".md")
    _write(path, checkpoint, run)
    return path


def model_card(checkpoint: Checkpoint, command: str = "", threads: int | None = None) -> str:
    """The card as Markdown; every figure in it is from the checkpoint's description."""
    about = checkpoint.info
    size = sum(tensor.numel() for tensor in checkpoint.state.values())
    steps = {None: "unknown", 0: "0 (standard training)"}.get(about.attack_steps, str(about.attack_steps))
    half = about.storage_dtype == HALF
    lines = [
        f"# {Path(checkpoint.name).name.removesuffix('.safetensors')}",
        "",
        f"- network: `{about.arch}`, {size:,} numbers, input {' x '.join(map(str, about.input_shape))}",
        f"- classes: {', '.join(about.classes[:20])}{' …' if len(about.classes) > 20 else ''}",
        f"- data: `{about.data}`, normalized by mean {about.mean}, deviation {about.std} inside the network",
        f"- attack steps in training (K): {steps}",
        f"- recipe: `{about.training or 'unknown'}`",
        *_origin(about.training),
        f"- weights: sha256 `{checkpoint.sha256}`",
        *(["- the file holds its weights in half precision (float16); the accuracies are those of these weights"] * half),
        f"- made with: {', '.join(f'{name} {version}' for name, version in about.versions.items()) or 'unknown'}",
    ]
    if about.metrics.get("n"):
        lines += ["", *_accuracies(checkpoint)]
    if command:
        exactly = f" (bit for bit at {threads} threads on the same kind of machine)" if threads else ""
        words = (word for word in command.split(" ") if word not in DISPLAY_ONLY)
        lines += ["", f"Made by{exactly}", "", f"    {' '.join(words)}"]
    return "\n".join(lines) + "\n"


def _origin(training: str) -> list[str]:
    """The line about the checkpoint that training began from."""
    recipe = parse(training, NAMES, "training") if is_recipe(training) else None
    if not isinstance(recipe, TrainingRecipe) or not recipe.start:
        return []
    kept = f"; layers that stayed: {', '.join(f'`{pattern}`' for pattern in recipe.freeze)}" if recipe.freeze else ""
    return [f"- fine-tuned from `{recipe.start}`, sha256 `{recipe.start_sha256}`{kept}"]


def _write(path: Path, checkpoint: Checkpoint, run: Path | str | None) -> None:
    info = (read_run(run) if run is not None else None) or {}
    made = info if info.get("command") == "train" else {}
    write_text(path, model_card(checkpoint, made.get("argv", ""), made.get("threads")))


def _accuracies(checkpoint: Checkpoint) -> list[str]:
    metrics = checkpoint.info.metrics
    n = metrics["n"]
    named = {"clean": "clean", "fgsm": "FGSM, same ball", "robust": f"`{metrics.get('attack', '')}`"}
    where = f" of `{metrics['data']}`" if "data" in metrics else ""
    lines = [f"Accuracy on the first {n:,} test images{where}:", "", "| attack | accuracy | 95 % interval |", "|---|---|---|"]
    for key, label in named.items():
        if key in metrics:
            low, high = wilson(round(metrics[key] * n), n)
            lines.append(f"| {label} | {100 * metrics[key]:.1f} % | {100 * low:.1f} to {100 * high:.1f} |")
    if "constant_prediction" in metrics:
        lines += ["", f"**The network predicts one class, `{metrics['constant_prediction']}`, for every test image.**"]
    return lines


def _is_picture(path: Path) -> bool:
    """Whether a file is there and is a whole picture."""
    try:
        with Image.open(path) as picture:
            picture.load()
    except (OSError, ValueError, SyntaxError):
        return False
    return True
