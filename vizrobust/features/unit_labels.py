"""Words for units: the word most similar to images that excite a unit, if it is so on others and no nonsense is as similar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vizrobust.intervals import auc_interval, auc_of_ranks
from vizrobust.rng import Streams

ACTIVE = 0.2  # an image excites a unit if it excites it more than all but this share of the images by which words are chosen
LIMIT = 0.7  # the lower end of the area's interval must be above it
# Strings of random letters for each word. A network that knows no word takes each text for as good as any other, so the best of
# all is a word in one case of 20.
NONSENSE, MOST_NONSENSE = 19, 2000
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class UnitLabel:
    """The word that fits a unit best on one half of the images, and how well it predicts the unit on the other half.

    `chosen_auc` is the area under the ROC curve by which it was chosen, the largest of all words and so too large;
    `nonsense_auc` is the largest of all strings of random letters there. `auc` with `low` and `high`, its 95 % interval, are of
    `n` held-out images, of which `active` excite the unit. `word` is the unit's `label` only if `low` is above `LIMIT` and no
    such string fits as well.
    """

    word: str
    chosen_auc: float
    nonsense_auc: float
    auc: float
    low: float
    high: float
    active: int
    n: int

    @property
    def label(self) -> str | None:
        return self.word if self.low > LIMIT and self.chosen_auc > self.nonsense_auc else None


def nonsense(words: Sequence[str], seed: int = 0) -> tuple[str, ...]:
    """Texts in the shape of the words with random letters: 19 for each word, at most 2,000, none of them a word of the list.

    >>> nonsense(["a dog", "cat"])[:4]
    ('c jie', 'ecw', 'i nom', 'bcc')
    """
    count = min(NONSENSE * len(words), MOST_NONSENSE)
    longest = max(map(len, words))
    letters = Streams(seed, range(2 * count), "nonsense").integers(len(LETTERS), longest).tolist()
    made = (
        "".join(
            LETTERS[number] if letter.isalnum() else letter
            for letter, number in zip(words[place % len(words)], row, strict=False)
        )
        for place, row in enumerate(letters)
    )
    return tuple(text for text in dict.fromkeys(made) if text not in words)[:count]


def unit_labels(activity: Tensor, similarity: Tensor, words: Sequence[str], seed: int = 0) -> list[UnitLabel | None]:
    """A word for each unit, from its `activity` (n, units) and the `similarity` (n, texts) of the same images to texts.

    The first texts are the `words`, the others nonsense. The images are halved at random by `seed`. An image counts as exciting a
    unit if its activity is above the upper fifth's border on the first half, where the word with the largest area under the ROC
    curve is chosen; it is tested on the second. None for a unit that no image, or every one, of a half excites.

    >>> activity = torch.arange(200.0)[:, None]
    >>> similarity = torch.stack([activity[:, 0] % 7, activity[:, 0].square()], 1)
    >>> (found,) = unit_labels(activity, similarity, ["stripes", "dogs"])
    >>> found.word, found.auc, found.label
    ('dogs', 1.0, 'dogs')
    """
    from scipy.stats import rankdata

    order = Streams(seed, ["images"], "halves for labels").permutation(len(activity))[0]
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    ranks = rankdata(similarity[first].numpy(), axis=0)
    found: list[UnitLabel | None] = []
    for unit in range(activity.shape[1]):
        values = activity[:, unit].double()
        border = torch.quantile(values[first], 1 - ACTIVE) if len(first) else 0.0
        excited = (values > border).numpy()
        chosen, held_out = excited[first], excited[second]
        if _constant(chosen) or _constant(held_out):
            found.append(None)
            continue
        areas = auc_of_ranks(ranks, chosen)
        best, others = int(np.argmax(areas[: len(words)])), areas[len(words) :]
        auc = float(auc_of_ranks(rankdata(similarity[second, best].numpy()), held_out))
        active, n = int(held_out.sum()), len(held_out)
        noise = float(others.max()) if len(others) else 0.0
        interval = auc_interval(auc, active, n - active)
        found.append(UnitLabel(words[best], float(areas[best]), noise, auc, *interval, active, n))
    return found


def _constant(values: np.ndarray) -> bool:
    return bool(values.all() or not values.any())
