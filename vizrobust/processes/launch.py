"""What a launcher such as torchrun says in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

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
