"""The evaluation engine: attack runs in a fixed number of slots, refilled when an image is decided."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vizrobust.attacks import Attack, State, Walk, measure
from vizrobust.compute import Compute, full_batches
from vizrobust.data import Split
from vizrobust.models import borrowed
from vizrobust.rng import Streams, seeded
from vizrobust.robustness.accuracy import CLEAN, Part

BATCH_SIZE = 100
Until = Literal["broken", "end", "last"]
# A part is handed out at the latest after so many seconds, so that an interrupted evaluation loses little.
PATIENCE = 5.0


def evaluate(
    net: nn.Module,
    attack: Attack,
    images: Split,
    compute: Compute,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    *,
    only: Sequence[int] | None = None,
    known: Iterable[Part] = (),
    until: Until = "broken",
    every_walk: bool = False,
) -> Iterator[Part]:
    """Attack the images of a split (those at the places `only`); `gather` makes one result of the parts.

    A broken image needs no further gradients, so it leaves its batch and the next image takes its slot. The batch
    size stays the same, and with it every image's result, bit for bit, whoever its mates are. What `known` parts of
    an earlier, interrupted evaluation say is not computed again and not yielded again.

    Walks after the first attack only what is not broken yet, unless `every_walk`. ``until="end"`` lets each walk go
    all its steps, for attacks that look for the smallest perturbation; ``until="last"`` does so too and counts an
    image as broken by its last point alone, as some published protocols have it.

    The `processes` of `compute` each take every so-manieth whole batch of what a walk still has to do. All of them
    yield the parts of all, a few seconds after they were made.
    """
    processes = compute.processes
    known = list(known)
    places = list(range(len(images))) if only is None else list(only)
    if not places:
        return
    compute.place(net)
    verdicts = {place: at for part in known if part.walk == CLEAN for place, at in zip(part.images, part.broken_at, strict=True)}
    unknown = [place for place in places if place not in verdicts]
    for part in processes.merged(_clean(net, images, unknown, compute, batch_size)):
        verdicts |= zip(part.images, part.broken_at, strict=True)
        yield part
    alive = [place for place in places if verdicts[place] < 0]
    with borrowed(net), compute.autocast():
        walks = attack.stages(net, compute.images(images.take(torch.tensor(places[:1]))))
    for walk in walks:
        done = {
            place: at for part in known if part.walk == walk.name for place, at in zip(part.images, part.broken_at, strict=True)
        }
        todo = [place for place in alive if place not in done]
        if not todo and not any(part.walk == walk.name for part in known):
            # A walk with nothing left to do is named all the same, so that a table can say that it broke nothing.
            yield Part(walk.name, walk.member, walk.steps, (), (), (), 0, 0, 0.0)
        slots = _Slots(net, walk, images, todo, compute, seed, batch_size, until)
        for part in processes.merged(slots.parts(attack), PATIENCE):
            done |= zip(part.images, part.broken_at, strict=True)
            yield part
        if not every_walk:
            alive = [place for place in alive if done[place] < 0]


class _Slots:
    """A batch of images on their way through one walk, each at a step of its own."""

    def __init__(
        self, net: nn.Module, walk: Walk, images: Split, todo: Sequence[int], compute: Compute, seed: int, size: int, until: str
    ) -> None:
        self.net, self.walk, self.images, self.compute, self.seed = net, walk, images, compute, seed
        self.leaves_ball = getattr(walk, "leaves_ball", False)
        self.until = "end" if self.leaves_ball else until
        self.todo = torch.tensor(todo, dtype=torch.int64)
        self.size = size
        self.passes = Passes(net)
        self.begun = self._begun()
        self.chunk: State = {}
        self.chunk_cost = (0, 0)
        self.chunk_places: list[int] = []
        self.state: State = {}
        # The place of each slot's image in the split; None is padding.
        self.places: list[int | None] = [None] * size
        # At which step each slot's image was first wrong, -1 if it was not.
        self.first = torch.full((size,), -1, device=compute.device)
        # Each slot's forward and gradient passes so far, and a step's.
        self.costs = [(0, 0)] * size
        self.step_cost: tuple[int, int] | None = None

    def parts(self, attack: Attack) -> Iterator[Part]:
        for number in itertools.count():
            began = time.perf_counter()
            rows: list[tuple[int, int, float, int, int]] = []
            with ExitStack() as stack:
                stack.enter_context(borrowed(self.net))
                stack.enter_context(self.compute.autocast())
                # For networks that draw from the global generator: the user's is left as it was.
                stack.enter_context(seeded(self.seed + number, self.compute.device))
                stack.enter_context(self.passes)
                self._refill()
                while any(place is not None for place in self.places):
                    self._advance()
                    rows += self._retire(attack)
                    self._refill()
                    if len(rows) >= self.size or (rows and time.perf_counter() - began > PATIENCE):
                        break
            if not rows:
                return
            taken, broken_at, norms, forward, gradient = zip(*rows, strict=True)
            yield Part(
                self.walk.name, self.walk.member, self.walk.steps, taken, broken_at, norms,
                sum(forward), sum(gradient), time.perf_counter() - began,
            )  # fmt: skip

    def _begun(self) -> Iterator[tuple[State, list[int], tuple[int, int]]]:
        """This process's fresh states in batches of the one size, with the places of the images that count, and the cost."""
        for index, count in self.compute.processes.mine(full_batches(len(self.todo), self.size)):
            places = self.todo[index]
            x = self.compute.images(self.images.take(places))
            y = self.images.labels[places].to(self.compute.device)
            streams = Streams(self.seed, places.tolist(), "attack")
            before = self.passes.each(self.size)
            state = self.walk.begin(self.net, x, y, streams)
            yield state, places[:count].tolist(), _since(before, self.passes.each(self.size))

    def _refill(self) -> None:
        """Put the next images' fresh states into the free slots."""
        free = [slot for slot, place in enumerate(self.places) if place is None]
        while free:
            if not self.chunk_places:
                found = next(self.begun, None)
                if found is None:
                    break
                self.chunk, self.chunk_places, self.chunk_cost = found
                self.next = 0
                if not self.state:
                    self.state = {key: value.clone() for key, value in self.chunk.items()}
            count = min(len(free), len(self.chunk_places))
            slots, free = free[:count], free[count:]
            for slot in slots:
                self.places[slot] = self.chunk_places.pop(0)
                self.costs[slot] = self.chunk_cost
            self._put(slots, range(self.next, self.next + count))
            self.next += count
        # Padding that has reached its end begins again: no walk is asked for more steps than it has.
        if free and self.state:
            over = (self.state["t"] > self.walk.steps).tolist()
            if ended := [slot for slot in free if over[slot]]:
                self._put(ended, [0] * len(ended))

    def _put(self, slots: Sequence[int], rows: Sequence[int]) -> None:
        to = torch.tensor(slots, device=self.compute.device)
        rows_ = torch.tensor(list(rows), device=self.compute.device)
        for key, value in self.chunk.items():
            # Not in place: two entries of a state may be one tensor.
            self.state[key] = self.state[key].index_copy(0, to, value[rows_].to(self.state[key].dtype))
        self.first[to] = -1

    def _advance(self) -> None:
        ended = self.state["t"] >= self.walk.steps
        before = self.passes.each(self.size)
        if bool((ended | ~self._taken()).all()):
            with torch.no_grad():
                self.walk.judge(self.net, self.state)
            cost = self.step_cost or _since(before, self.passes.each(self.size))
        else:
            self.walk.step(self.net, self.state)
            cost = self.step_cost = _since(before, self.passes.each(self.size))
        self._pay(ended.tolist(), *cost)
        newly = self.state["wrong"] & (self.first < 0)
        self.first = torch.where(newly, self.state["t"] - 1, self.first)

    def _taken(self) -> Tensor:
        """(size,) bool: the slots that hold an image that counts."""
        return torch.tensor([place is not None for place in self.places], device=self.compute.device)

    def _pay(self, ended: Sequence[bool], forward: int, gradient: int) -> None:
        """Book a step. An image at its end needs no gradient, which it gets or not as its mates need one."""
        self.costs = [(f + forward, g + gradient * (not last)) for (f, g), last in zip(self.costs, ended, strict=True)]

    def _retire(self, attack: Attack) -> list[tuple[int, int, float, int, int]]:
        """The place, first wrong step, norm and passes of every image that is decided; its slot is free."""
        state = self.state
        over = state["t"] > self.walk.steps
        if self.until == "broken":
            over = over | state["wrong"]
        if "done" in state:
            over = over | state["done"]
        over = over & self._taken()
        if not bool(over.any()):
            return []
        broken = ~state["correct"] if self.until == "last" else state["wrong"]
        # What decided an image's verdict; and where its walk ended, if it was not broken or may be outside its ball.
        ended = measure(attack, state["adv"] - state["x"])
        best = measure(attack, state["best"] - state["x"])
        norms = (
            ended if self.until == "last" else torch.maximum(best, ended if self.leaves_ball else ended.masked_fill(broken, 0))
        )
        rows = []
        for slot in over.nonzero()[:, 0].tolist():
            place = self.places[slot]
            assert place is not None
            at = int(self.first[slot] if self.until != "last" else state["t"][slot] - 1) if broken[slot] else -1
            rows.append((place, at, float(norms[slot]), *self.costs[slot]))
            self.places[slot] = None
        return rows


def _clean(net: nn.Module, images: Split, todo: Sequence[int], compute: Compute, batch_size: int) -> Iterator[Part]:
    places = torch.tensor(todo, dtype=torch.int64)
    for index, count in compute.processes.mine(full_batches(len(places), batch_size)):
        began = time.perf_counter()
        taken = places[index]
        with borrowed(net), compute.autocast(), torch.no_grad(), seeded(0, compute.device):
            right = net(compute.images(images.take(taken))).argmax(1) == images.labels[taken].to(compute.device)
        broken_at = tuple(-int(hit) for hit in right[:count].tolist())
        seconds = time.perf_counter() - began
        yield Part(CLEAN, CLEAN, 0, tuple(taken[:count].tolist()), broken_at, (0.0,) * count, count, 0, seconds)


def _since(before: tuple[int, int], after: tuple[int, int]) -> tuple[int, int]:
    return after[0] - before[0], after[1] - before[1]


class Passes:
    """Counts the network's forward passes, and those of them that lead to an image gradient, in images."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.forward, self.gradient = net, 0, 0

    def each(self, size: int) -> tuple[int, int]:
        """Forward and gradient passes of each image of the batches of that size so far."""
        return self.forward // size, self.gradient // size

    def __enter__(self) -> Passes:
        self._handle = self.net.register_forward_pre_hook(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _count(self, _net: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.forward += len(inputs[0])
        self.gradient += len(inputs[0]) * bool(inputs[0].requires_grad and torch.is_grad_enabled())
