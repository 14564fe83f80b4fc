"""Several processes that share one command: which part each does, and how they exchange results through Accelerate."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

# How long an exchange waits for the slowest process. One may have an hour more to do than the others, so time says
# nothing about death: a dead process is noticed by its lifeline, or by the launcher, whatever stands here.
FOREVER = timedelta(days=30)


@dataclass(frozen=True)
class Processes:
    """This process's place among `size` that run the same program; `SINGLE` is the only one, and all is free.

    Every method but `part` and `shard` is an exchange: all processes call it in the same order, or all wait. Exchanged
    objects are pickled. Raises ``ConnectionError`` where another process is gone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """The one that reads and writes files and speaks."""
        return self.rank == 0

    @property
    def local_main(self) -> bool:
        return self.local_rank == 0

    def part(self, n: int) -> range:
        """This process's contiguous part of n items; parts differ in length by at most one, the longer ones first.

        >>> [list(Processes(rank, 3).part(7)) for rank in range(3)]
        [[0, 1, 2], [3, 4], [5, 6]]
        """
        each, over = divmod(n, self.size)
        start = self.rank * each + min(self.rank, over)
        return range(start, start + each + (self.rank < over))

    def shard(self, items: Iterable[T]) -> Iterator[T]:
        """This process's items: every size-th. So a round of `interleave` yields them in the order of one process.

        >>> list(Processes(1, 2).shard("abcde"))
        ['b', 'd']
        """
        return itertools.islice(items, self.rank, None, self.size)

    def interleave(self, items: Iterable[T], seconds: float = 0.0) -> Iterator[T]:
        """What each process makes, on every process, in rounds: as they are made, so that little is lost with a process.

        A round takes one item of each process, or, with `seconds`, as many as each makes in that time, which spares
        those with easy items the wait for those with hard ones. Within a round the ranks follow each other: where each
        process makes its own `shard`, and `seconds` is 0, the order is that of one process.
        """
        if self.size == 1:
            yield from items
            return
        source = iter(items)
        over = False
        while not over:
            made, alive = self._made(source, seconds)
            rounds = self.all_gather([(made, alive)])
            for items, _ in rounds:
                yield from items
            over = not any(going for _, going in rounds)

    def all_gather(self, rows: Sequence[T]) -> list[T]:
        """The rows of all processes, in the order of their ranks."""
        if self.size == 1:
            return list(rows)
        from accelerate.utils import gather_object

        with _exchange():
            found: list[T] = gather_object(list(rows))
        return found

    def broadcast(self, value: T) -> T:
        """The main process's value; what the others give is ignored."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        with _exchange():
            (found,) = broadcast_object_list([value if self.main else None])
        result: T = found
        return result

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, of the tensor's type and on its device; on every process the same bits."""
        if self.size == 1:
            return tensor
        from accelerate.utils import reduce

        with _exchange():
            found: Tensor = reduce(tensor.to(self._meeting_place()), reduction="sum")
        return found.to(tensor.device)

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.all_gather([])

    def _made(self, source: Iterator[T], seconds: float) -> tuple[list[T], bool]:
        """The next items of a source, at least one unless it is at its end, and whether it may have more."""
        made: list[T] = []
        began = time.monotonic()
        for item in source:
            made.append(item)
            if time.monotonic() - began >= seconds:
                return made, True
        return made, False

    def _meeting_place(self) -> str:
        """The device of tensors that are exchanged."""
        from torch.distributed import get_backend

        return f"cuda:{self.local_rank}" if get_backend() == "nccl" else "cpu"


SINGLE = Processes()


@contextmanager
def _exchange() -> Iterator[None]:
    """torch's error for a connection that broke, as one sentence; other errors are as they are."""
    import torch

    try:
        yield
    except torch.distributed.DistError as error:
        raise ConnectionError(_broken(error)) from error
    except RuntimeError as error:
        # gloo's errors have no type of their own.
        if "gloo" not in str(error).lower() and "connection" not in str(error).lower():
            raise
        raise ConnectionError(_broken(error)) from error


def _broken(error: Exception) -> str:
    reason = next(iter(str(error).splitlines()), "")
    return f"another process of this command is gone ({reason}); the same command goes on where this one stopped"


NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """This process is number `rank` of `size`, and number `local_rank` on its machine; they meet at `address`:`port`."""

    rank: int
    size: int
    local_rank: int
    address: str
    port: int

    @property
    def local_main(self) -> bool:
        return self.local_rank == 0


def launched(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """How this process was launched beside others; None where it is the only one.

    torchrun sets ``RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT``; they may also be set by hand, LOCAL_RANK
    then is 0 unless it is set too. Raises ``ValueError`` where some are missing or no numbers.

    >>> by_hand = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
    >>> launched(by_hand)
    Launch(rank=1, size=2, local_rank=0, address='node0', port=29500)
    >>> launched({})
    """
    size = _number(environment, "WORLD_SIZE", 1)
    if size == 1:
        return None
    if missing := [name for name in NEEDED if not environment.get(name)]:
        raise ValueError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} not set; start all processes with torchrun, or set "
            f"{', '.join(NEEDED)} and WORLD_SIZE for each (unset WORLD_SIZE for one process)"
        )
    rank, local_rank = _number(environment, "RANK", 0), _number(environment, "LOCAL_RANK", 0)
    if not 0 <= rank < size:
        raise ValueError(f"RANK is {rank}, but WORLD_SIZE is {size}: ranks are counted from 0 to {size - 1}")
    return Launch(rank, size, local_rank, environment["MASTER_ADDR"], _number(environment, "MASTER_PORT", 0))


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}, expected a whole number as torchrun sets it") from None


__all__ = ["FOREVER", "SINGLE", "Launch", "Processes", "launched"]
