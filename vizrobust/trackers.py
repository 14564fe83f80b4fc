"""Experiment trackers by name, through Accelerate: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker, get_available_trackers

from vizrobust.requests import ParameterError

NAMES = ("tensorboard", "wandb", "mlflow")
PROJECT = "vizrobust"


class Tracker:
    """Where the numbers of a run also go; without a name nowhere.

    `name` is one of ``NAMES``, `run` the run's own name, `folder` where a tracker that writes files writes them, and
    `about` what the run was made with. Raises ``ValueError`` for another name, and for a tracker that is not installed.
    """

    def __init__(self, name: str | None, run: str, folder: Path, about: Mapping[str, str]) -> None:
        if name is not None and name not in NAMES:
            raise ValueError(f"no tracker {name!r}; there are: {', '.join(NAMES)}")
        if name is not None and name not in {str(getattr(each, "value", each)) for each in get_available_trackers()}:
            raise ParameterError("tracker %r is not installed; pip install %s, or leave {track} out", name, name)
        self.name, self.run, self.folder, self.info = name, run, folder, about
        self._open: GeneralTracker | None = None

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """The numbers of a row, at this step; whatever is not a number stays out."""
        if self.name is None:
            return
        if self._open is None:
            self._open = self._opened()
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        self._open.log(numbers, step=step)

    def close(self) -> None:
        if self._open is not None:
            self._open.finish()

    def _opened(self) -> GeneralTracker:
        """Opened with the first row: before it the run's folder must not hold anything of others."""
        if self.name == "tensorboard":
            tracker: GeneralTracker = TensorBoardTracker(self.name, logging_dir=self.folder)
        elif self.name == "wandb":
            tracker = WandBTracker(PROJECT, name=self.run)
        else:
            tracker = MLflowTracker(experiment_name=PROJECT, run_name=self.run)
        # Accelerate 1.15 starts some trackers when they are made and others in `start`.
        if hasattr(tracker, "start"):
            tracker.start()
        tracker.store_init_configuration(dict(self.info))
        return tracker
