"""What `neurons --exemplars` adds to a run: the natural images that excite its units most and least."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from vizrobust.cli.output import progress

if TYPE_CHECKING:
    from vizrobust.cli.rendering import Pictured
    from vizrobust.data import DataSet
    from vizrobust.features import Objective
    from vizrobust.features.exemplar_runs import ImageSource
    from vizrobust.models import Checkpoint
    from vizrobust.runs import Row


def exemplar_source(data: DataSet | None, objective: Objective, checkpoints: Sequence[Checkpoint], k: int) -> ImageSource:
    """Where the exemplars come from; ``ValueError``, before anything is rendered, where they cannot be found."""
    from vizrobust.features.exemplar_runs import ImageSource, ranking_measure
    from vizrobust.features.exemplars import check_images

    if data is None:
        raise ValueError("--exemplars needs natural images; name a data set with --data (vizrobust list data)")
    ranking_measure(objective)
    source = ImageSource(data)
    for checkpoint in checkpoints:
        check_images(source.images, k, checkpoint.info.input_shape)
    return source


def add_exemplars(pictured: Pictured, checkpoints: Sequence[Checkpoint], source: ImageSource, k: int, quiet: bool) -> list[Row]:
    """Find and save the exemplars of every checkpoint's units; returns their rows."""
    from vizrobust.features.exemplar_runs import exemplars_into

    request, rows = pictured.request, []
    with progress(quiet) as bars:
        for checkpoint in checkpoints:
            task = bars.add_task(f"{checkpoint.name}, natural images", total=len(source.images))
            rows += exemplars_into(
                pictured.run, checkpoint, request.objective, request.units, source, k, pictured.compute,
                partial(bars.advance, task),
            )  # fmt: skip
    return rows


def with_exemplars(rows: Sequence[Row], found: Sequence[Row]) -> list[Row]:
    """Rows of pictures, each with both ends of its unit's images under ``exemplars``, for --json."""
    by_unit: dict[tuple[str, int], dict[int, Row]] = {}
    for row in found:
        by_unit.setdefault((row["checkpoint"], row["unit"]), {})[row["sign"]] = row

    def added(row: Row) -> dict[str, Any]:
        ends = by_unit[row["checkpoint"], row["unit"]]
        about = {key: ends[1][key] for key in ("data", "split", "n", "of", "map")}
        return {**row, "exemplars": {**about, "most": ends[1]["images"], "least": ends[-1]["images"]}}

    return [added(row) for row in rows]
