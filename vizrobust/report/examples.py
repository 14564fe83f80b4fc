"""Adversarial examples as everyone expects them: clean image, amplified perturbation, adversarial image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from vizrobust.report.canvas import LEADING, Canvas, Pixels, scaled, shortened, text_width, wrapped
from vizrobust.report.style import FAINT, INK, QUIET, format_of, house_style

TILE, PITCH, ROW_GAP, MARGIN = 280, 420, 56, 96
TITLE, HEAD, TEXT, CAPTION, SIGN = 42, 27, 26, 23, 52
EDGE, WRONG = 2, "#b5471b"
Line = tuple[str, str, str]  # a text that may be shortened, an end that must stay, and a colour
HEADS = ("clean image", "perturbation", "adversarial image")


def adversarial_examples(
    path: Path | str,
    x: Tensor,
    adv: Tensor,
    labels: Tensor,
    clean_probs: Tensor,
    adv_probs: Tensor,
    classes: Sequence[str],
    attack_text: str,
    name: str,
    command: str = "",
) -> Path:
    """Draw one row per image to a PNG, SVG or PDF.

    `x` and `adv` are (N, C, H, W) in [0, 1], `labels` (N,), the probabilities (N, classes). The perturbation is
    shown around grey, times one factor for all rows, chosen so that the largest change just fills the range.
    Raises ``ValueError`` where sizes do not fit or there is no image.
    """
    format_of(path)
    n = len(x)
    if n == 0 or x.shape != adv.shape or not n == len(labels) == len(clean_probs) == len(adv_probs):
        raise ValueError(
            f"examples need the same number of images, adversarial images, labels and probabilities, at least 1; got "
            f"{tuple(x.shape)}, {tuple(adv.shape)}, {len(labels)}, {len(clean_probs)} and {len(adv_probs)}"
        )
    delta = (adv - x).detach().cpu().double()
    factor = amplification(float(delta.abs().max()))
    tiles = [[_tile(image[i]) for image in (x, delta * factor + 0.5, adv)] for i in range(n)]
    height, width = tiles[0][0].shape[:2]
    texts = [
        (
            _said(clean_probs[i], int(labels[i]), classes),
            [(f"max |δ| = {float(delta[i].abs().max()):.3g}", "", INK), (f"L2 = {float(delta[i].norm()):.3g}", "", QUIET)],
            _said(adv_probs[i], int(labels[i]), classes),
        )
        for i in range(n)
    ]
    with house_style():
        return _draw(path, tiles, texts, width, height, factor, name, attack_text, command)


def amplification(largest: float) -> float:
    """The factor, to two digits, at which a change of `largest` fills the range on either side of grey; 1 for none.

    >>> amplification(0.3), amplification(8 / 255), amplification(0.0)
    (1.7, 16.0, 1.0)
    """
    if largest <= 0 or not math.isfinite(largest):
        return 1.0
    return float(f"{0.5 / largest:.1e}")


def _draw(
    path: Path | str, tiles: list[list[Pixels]], texts: Sequence[tuple[list[Line], ...]], column: int, height: int, factor: float,
    name: str, attack: str, command: str,
) -> Path:  # fmt: skip
    room = max(96, PITCH - column)  # between two images, for + and =
    width = 2 * MARGIN + 3 * column + 2 * room
    widest = column + min(room - 16, 2 * (MARGIN - 30))
    line = TEXT * LEADING
    title = [shortened(f"{name} under attack", width - 2 * MARGIN, TITLE, bold=True)]
    attack_lines = wrapped(attack, width - 2 * MARGIN, TEXT)
    row = height + 14 + 2 * line
    above = MARGIN + TITLE * LEADING + len(attack_lines) * line + 30 + HEAD * LEADING + 12
    canvas = Canvas(width, math.ceil(above + len(tiles) * (row + ROW_GAP) - ROW_GAP + MARGIN))
    after = canvas.lines(title, MARGIN, MARGIN, TITLE, bold=True)
    canvas.lines(attack_lines, MARGIN, after, TEXT, color=QUIET)
    lefts = [MARGIN + i * (column + room) for i in range(3)]
    for left, head in zip(lefts, (HEADS[0], f"{HEADS[1]} × {factor:g}", HEADS[2]), strict=True):
        canvas.text(head, left + column / 2, above - 20, HEAD, bold=True, align="center")
    for i, (images, words) in enumerate(zip(tiles, texts, strict=True)):
        y = round(above + i * (row + ROW_GAP))
        for left, image, lines in zip(lefts, images, words, strict=True):
            inset = left + (column - image.shape[1]) // 2
            canvas.frame(inset - EDGE, y - EDGE, image.shape[1] + 2 * EDGE, height + 2 * EDGE, FAINT, EDGE)
            canvas.image(image, inset, y)
            for k, (text, end, color) in enumerate(lines):
                fitted = shortened(text, widest - text_width(end, TEXT), TEXT, keep="start") + end
                canvas.text(
                    fitted, left + column / 2, y + height + 14 + k * line + TEXT * 0.95, TEXT, align="center", color=color
                )
        for sign, left in (("+", lefts[0]), ("=", lefts[1])):
            canvas.text(sign, left + column + room / 2, y + height / 2 + SIGN * 0.35, SIGN, color=QUIET, align="center")
    return canvas.save(path, command)


def _tile(image: Tensor) -> Pixels:
    """(C, H, W), clipped to [0, 1] -> (h, w, 3) uint8 about `TILE` large."""
    pixels = (image.detach().cpu().double().clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
    return scaled(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), TILE)


def _said(probs: Tensor, label: int, classes: Sequence[str]) -> list[Line]:
    """What the network says with which probability, in another colour where that is wrong, and what is true."""
    said = int(probs.argmax())
    color = INK if said == label else WRONG
    return [(f"predicted {classes[said]}", f", {100 * float(probs[said]):.1f} %", color), (f"true {classes[label]}", "", QUIET)]
