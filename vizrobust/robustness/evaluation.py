"""The evaluation engine: attack runs in a fixed number of slots, refilled when an image is decided."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vizrobust.attacks import Attack, AttackRun, State, perturbation_norm
from vizrobust.compute import Compute, full_batches, size_class
from vizrobust.data import Split
from vizrobust.models import evaluating
from vizrobust.models.forward import PerImageNoise
from vizrobust.rng import Streams, seeded
from vizrobust.robustness.accuracy import CLEAN, NO_SUCCESS, UNDEFINED, PartialResult

BATCH_SIZE = 100
Stop = Literal["success", "end", "last"]
# An image's index, first success step, norm, forward and gradient passes, and whether a gradient was not finite.
Decided = tuple[int, int, float, int, int, bool]
# A partial result is yielded at the latest after so many seconds, so that an interrupted evaluation loses little.
FLUSH_SECONDS = 5.0


def evaluate(
    net: nn.Module,
    attack: Attack,
    images: Split,
    compute: Compute,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    *,
    indices: Sequence[int] | None = None,
    known: Iterable[PartialResult] = (),
    stop: Stop = "success",
    all_runs: bool = False,
) -> Iterator[PartialResult]:
    """Attack the images of a split (those at `indices`) and yield partial results; `merge_results` makes one of them.

    An image that is misclassified needs no further gradients: it leaves its batch, and the next image takes its slot.
    The batch size stays the same, so an image's result does not depend on the other images in the batch, not even in
    the last bit. It is `batch_size`, or where there are fewer images the next of few sizes (see `slots_for`), which the
    partial results record. What the `known` partial results of an interrupted evaluation say is neither computed nor
    yielded again.

    Runs after the first attack only the images on which no run has succeeded, unless `all_runs`. ``stop="end"`` lets
    each run take all its steps, for attacks that look for the smallest perturbation; ``stop="last"`` does so too and
    judges an image by its last point alone, as some published protocols do.

    A stochastic network gets one image per forward pass, under a seed that depends on `seed`, the image and the step
    alone, so its verdicts depend neither on the batch nor on how the work was shared or interrupted.

    Of n `processes` of `compute`, each takes every n-th batch of a run's remaining images. All of them yield the
    partial results of all, a few seconds after they were made.

    >>> from vizrobust.attacks import FGSM, Linf
    >>> from vizrobust.compute import Compute
    >>> from vizrobust.data import ArraySplit
    >>> images = ArraySplit(torch.tensor([0.9, 0.1, 0.6, 0.5]).reshape(2, 1, 1, 2), torch.tensor([0, 0]))
    >>> from vizrobust.robustness import merge_results
    >>> attack = FGSM(ball=Linf(eps=0.1))
    >>> merge_results(attack, evaluate(nn.Flatten(), attack, images, Compute("cpu")))
    50.0 % (9.5 to 90.5) of 2 images under FGSM(ball=Linf(eps=0.1))
    """
    processes = compute.processes
    known = list(known)
    wanted = list(range(len(images))) if indices is None else list(indices)
    if not wanted:
        return

    def size_of(run: str) -> int:
        return slots_for(len(wanted), batch_size, (part for part in known if part.run == run))

    def recorded(part: PartialResult, size: int) -> PartialResult:
        return part if size == batch_size else replace(part, batch_size=size)

    size = size_of(CLEAN)
    compute.place(net)
    network = PerImageNoise(net)
    verdicts = _first_success_steps(known, CLEAN)
    unknown = [index for index in wanted if index not in verdicts]
    for part in processes.interleave(_clean(network, images, unknown, compute, seed, size)):
        verdicts |= zip(part.indices, part.first_success_step, strict=True)
        yield recorded(part, size)
    correct = [index for index in wanted if verdicts[index] == NO_SUCCESS]
    with evaluating(network), compute.autocast(), seeded(seed, compute.device):
        runs = attack.runs(network, compute.images(images.take(torch.tensor(wanted[:1]))))
    for run in runs:
        done = _first_success_steps(known, run.name)
        todo = [index for index in correct if index not in done]
        if not todo and not any(part.run == run.name for part in known):
            # A run with nothing left to do is yielded all the same, so that a table can show that it succeeded nowhere.
            yield PartialResult(run.name, run.component, run.steps, (), (), (), 0, 0, 0.0)
        size = size_of(run.name)
        slots = SlotScheduler(network, run, images, todo, compute, seed, size, stop)
        for part in processes.interleave(slots.parts(attack), FLUSH_SECONDS):
            done |= zip(part.indices, part.first_success_step, strict=True)
            yield recorded(part, size)
        if not all_runs:
            correct = [index for index in correct if done[index] < 0]


def slots_for(count: int, batch_size: int, known: Iterable[PartialResult] = ()) -> int:
    """The batch size for an evaluation of `count` images: `batch_size`, or less where that would be mostly padding.

    What an interrupted evaluation has begun with, its `known` results, is gone on with.

    >>> slots_for(10, 100), slots_for(1000, 100)
    (12, 100)
    """
    begun = (part.batch_size or batch_size for part in known if part.indices)
    return max(size_class(count, batch_size), *begun, 1)


def _first_success_steps(parts: Iterable[PartialResult], run: str) -> dict[int, int]:
    """Index -> the step of its first misclassified point (-1: none), as the parts of one run say."""
    return {
        index: step
        for part in parts
        if part.run == run
        for index, step in zip(part.indices, part.first_success_step, strict=True)
    }


class SlotScheduler:
    """A batch of images in one run of an attack, each at a step of its own; an image that is decided gives up its slot."""

    def __init__(
        self,
        net: PerImageNoise,
        run: AttackRun,
        images: Split,
        todo: Sequence[int],
        compute: Compute,
        seed: int,
        size: int,
        stop: str,
    ) -> None:
        self.net, self.run, self.images, self.compute, self.seed = net, run, images, compute, seed
        self.leaves_ball = getattr(run, "leaves_ball", False)
        self.stop = "end" if self.leaves_ball else stop
        self.todo = torch.tensor(todo, dtype=torch.int64)
        self.size = size
        self.passes = Passes(net)
        self.fresh_batches = self._fresh_batches()
        self.fresh: State = {}
        self.fresh_cost = (0, 0)
        self.fresh_indices: list[int] = []
        self.state: State = {}
        # The index of each slot's image in the split; None is padding.
        self.indices: list[int | None] = [None] * size
        # The step at which each slot's image was first misclassified, -1 if it was not.
        self.first = torch.full((size,), -1, device=compute.device)
        # Each slot's forward and gradient passes so far, and a step's.
        self.costs = [(0, 0)] * size
        self.step_cost: tuple[int, int] | None = None

    def parts(self, attack: Attack) -> Iterator[PartialResult]:
        while True:
            began = time.perf_counter()
            rows: list[Decided] = []
            with ExitStack() as stack:
                stack.enter_context(evaluating(self.net))
                stack.enter_context(self.compute.autocast())
                # The user's global generators are left as they were.
                stack.enter_context(seeded(self.seed, self.compute.device))
                stack.enter_context(self.passes)
                self._refill()
                while any(index is not None for index in self.indices):
                    self._advance()
                    rows += self._retire(attack)
                    self._refill()
                    if len(rows) >= self.size or (rows and time.perf_counter() - began > FLUSH_SECONDS):
                        break
            if not rows:
                return
            indices, first_success_step, norms, forward, gradient, nonfinite = zip(*rows, strict=True)
            yield PartialResult(
                self.run.name, self.run.component, self.run.steps, indices, first_success_step, norms,
                sum(forward), sum(gradient), time.perf_counter() - began,
                nonfinite_gradients=tuple(index for index, found in zip(indices, nonfinite, strict=True) if found),
            )  # fmt: skip

    def _fresh_batches(self) -> Iterator[tuple[State, list[int], tuple[int, int]]]:
        """This process's initial states in batches of the one size, with the indices of the images that count, and the cost."""
        for batch, count in self.compute.processes.shard(full_batches(len(self.todo), self.size)):
            indices = self.todo[batch]
            x = self.compute.images(self.images.take(indices))
            y = self.images.labels[indices].to(self.compute.device)
            streams = Streams(self.seed, indices.tolist(), "attack")
            before = self.passes.each(self.size)
            with self._noise(streams):
                state = self.run.start(self.net, x, y, streams)
            yield state, indices[:count].tolist(), _since(before, self.passes.each(self.size))

    def _refill(self) -> None:
        """Put the initial states of the next images into the free slots."""
        free = [slot for slot, index in enumerate(self.indices) if index is None]
        while free:
            if not self.fresh_indices:
                found = next(self.fresh_batches, None)
                if found is None:
                    break
                self.fresh, self.fresh_indices, self.fresh_cost = found
                self.next = 0
                if not self.state:
                    self.state = {key: value.clone() for key, value in self.fresh.items()}
            count = min(len(free), len(self.fresh_indices))
            slots, free = free[:count], free[count:]
            for slot in slots:
                self.indices[slot] = self.fresh_indices.pop(0)
                self.costs[slot] = self.fresh_cost
            self._put(slots, range(self.next, self.next + count))
            self.next += count
        # Padding that has reached its end begins again: no run is asked for more steps than it has.
        if free and self.state:
            over = (self.state["step"] > self.run.steps).tolist()
            if ended := [slot for slot in free if over[slot]]:
                self._put(ended, [0] * len(ended))

    def _put(self, slots: Sequence[int], rows: Sequence[int]) -> None:
        to = torch.tensor(slots, device=self.compute.device)
        rows_ = torch.tensor(list(rows), device=self.compute.device)
        for key, value in self.fresh.items():
            # Not in place: two entries of a state may be one tensor.
            self.state[key] = self.state[key].index_copy(0, to, value[rows_].to(self.state[key].dtype))
        self.first[to] = -1

    def _advance(self) -> None:
        ended = self.state["step"] >= self.run.steps
        before = self.passes.each(self.size)
        if bool((ended | ~self._taken()).all()):
            with torch.no_grad(), self._noise():
                self.run.evaluate(self.net, self.state)
            cost = self.step_cost or _since(before, self.passes.each(self.size))
        else:
            with self._noise():
                self.run.step(self.net, self.state)
            cost = self.step_cost = _since(before, self.passes.each(self.size))
        self._pay(ended.tolist(), *cost)
        newly = self.state["misclassified"] & (self.first < 0)
        self.first = torch.where(newly, self.state["step"] - 1, self.first)

    @contextmanager
    def _noise(self, streams: Streams | None = None) -> Iterator[None]:
        """A stochastic network draws each image's noise from a stream of the image and its step."""

        def of_step() -> Streams:
            return Streams.of(self.state["keys"].cpu(), self.state["step"].cpu())

        self.net.noise_from(lambda: (streams or of_step()).child(self.run.name))
        if not self.net.stochastic:
            yield
            return
        with seeded(self.seed, self.compute.device):
            yield

    def _taken(self) -> Tensor:
        """(size,) bool: the slots that hold an image that counts."""
        return torch.tensor([index is not None for index in self.indices], device=self.compute.device)

    def _pay(self, ended: Sequence[bool], forward: int, gradient: int) -> None:
        """Book a step. An image at its end needs no gradient, and is not charged for one that the others in the batch need."""
        self.costs = [(f + forward, g + gradient * (not last)) for (f, g), last in zip(self.costs, ended, strict=True)]

    def _retire(self, attack: Attack) -> list[Decided]:
        """Every image that is decided; its slot becomes free."""
        state = self.state
        over = state["step"] > self.run.steps
        if self.stop == "success":
            over = over | state["misclassified"]
        if "done" in state:
            over = over | state["done"]
        over = over & self._taken()
        if not bool(over.any()):
            return []
        last = self.stop == "last"
        misclassified = state["finite"] & ~state["correct"] if last else state["misclassified"]
        undefined = ~state["finite"] if last else state["undefined"]
        # What decided an image's verdict; and where its run ended, if it had no success or may be outside its ball.
        ended = perturbation_norm(attack, state["adv"] - state["x"])
        best = perturbation_norm(attack, state["best"] - state["x"])
        norms = (
            ended
            if self.stop == "last"
            else torch.maximum(best, ended if self.leaves_ball else ended.masked_fill(misclassified, 0))
        )
        nonfinite = state["nonfinite_gradient"].tolist()
        rows = []
        for slot in over.nonzero()[:, 0].tolist():
            index = self.indices[slot]
            assert index is not None
            if misclassified[slot]:
                step = int(self.first[slot] if self.stop != "last" else state["step"][slot] - 1)
            else:
                step = UNDEFINED if undefined[slot] else NO_SUCCESS
            rows.append((index, step, float(norms[slot]), *self.costs[slot], nonfinite[slot]))
            self.indices[slot] = None
        return rows


def _clean(
    net: PerImageNoise, images: Split, todo: Sequence[int], compute: Compute, seed: int, batch_size: int
) -> Iterator[PartialResult]:
    """The verdicts on the unchanged images, and which classes the network predicts."""
    indices = torch.tensor(todo, dtype=torch.int64)
    for batch, count in compute.processes.shard(full_batches(len(indices), batch_size)):
        began = time.perf_counter()
        taken = indices[batch]
        net.noise_from(partial(Streams, seed, taken.tolist(), CLEAN))
        with evaluating(net), compute.autocast(), torch.no_grad(), seeded(0, compute.device):
            logits = net(compute.images(images.take(taken)))[:count].cpu()
        predicted, defined = logits.argmax(1), logits.isfinite().all(1)
        step = torch.where(predicted == images.labels[taken[:count]], NO_SUCCESS, 0).where(defined, UNDEFINED)
        yield PartialResult(
            CLEAN, CLEAN, 0, tuple(taken[:count].tolist()), tuple(step.tolist()), (0.0,) * count, count, 0,
            time.perf_counter() - began, tuple(predicted.where(defined, -1).tolist()), net.stochastic,
            depends_on=net.depends_on,
        )  # fmt: skip


def _since(before: tuple[int, int], after: tuple[int, int]) -> tuple[int, int]:
    return after[0] - before[0], after[1] - before[1]


class Passes:
    """Counts the network's forward passes, and those of them that lead to an image gradient, in images."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.forward, self.gradient = net, 0, 0

    def each(self, size: int) -> tuple[int, int]:
        """Forward and gradient passes per image so far, in batches of that size."""
        return self.forward // size, self.gradient // size

    def __enter__(self) -> Passes:
        self._handle = self.net.register_forward_pre_hook(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _count(self, _net: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.forward += len(inputs[0])
        self.gradient += len(inputs[0]) * bool(inputs[0].requires_grad and torch.is_grad_enabled())
