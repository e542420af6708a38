"""Who else computes: one process, or several that share the samples of a run.

Whatever depends on that asks a `World`: which samples are this one's, sums over all, who writes.

Several processes are torch's own (`torch.distributed`), as `torchrun` and `accelerate launch` start
them. What is averaged while a model trains goes through the group that is there; what a world sums
goes through a second one on the CPU, so that neither is taken for the other where a process fails.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import Any, Protocol, final

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from frostline.errors import ConfigError, FrostlineError, TrainingError

_ROOM = 7  # numbers that go along when processes meet
_OF_TRANSPORT = ("gloo/transport", "Connection closed by peer", "Connection reset by peer")
_LAST_WORDS = timedelta(seconds=20)  # for what failed to be heard by all


class World(Protocol):
    """The processes that train one model together, as one of them sees them.

    All call the same methods in the same order.

    Example:
        >>> from frostline.world import ALONE
        >>> ALONE.rank, ALONE.size, ALONE.writes
        (0, 1, True)
    """

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many processes there are."""
        ...

    @property
    def writes(self) -> bool:
        """Whether this process writes what there is once: the run folder and its journal."""
        ...

    def barrier(self) -> None:
        """Wait until all processes have come here."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """The element-wise sum over all processes, which all call it with the same shape."""
        ...

    def tell(self, error: BaseException) -> BaseException:
        """Let the others know that this process failed, wherever they are: they end with it.

        Gives what to raise here: the error, unless it is one of torch's about a lost process.
        """
        ...


@final
@dataclass(frozen=True, slots=True)
class OneProcess:
    """Nobody else; costs nothing."""

    rank: int = 0
    size: int = 1
    writes: bool = True

    def barrier(self) -> None:
        """Nobody to wait for."""

    def sum(self, values: Tensor) -> Tensor:
        return values

    def tell(self, error: BaseException) -> BaseException:
        """Nobody to tell."""
        return error


ALONE: World = OneProcess()


@final
@dataclass(slots=True, eq=False)
class Ranks:
    """Processes of a group of `torch.distributed`; see `world_here`.

    Whenever they meet, a few numbers go round first, of which one says whether a process failed:
    then all raise what it raised, and none waits for it.

    Attributes:
        group: one on the CPU, which nothing else uses.
    """

    rank: int
    size: int
    group: dist.ProcessGroup
    _has_ended: bool = field(default=False, init=False)  # all know of a failure

    @property
    def writes(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        self._meet(torch.empty(0))

    def sum(self, values: Tensor) -> Tensor:
        """The sum, on the device of `values`; the same bits on all processes and each time.

        Raises:
            FrostlineError: a process failed; of the kind and with the words of its error.
            KeyboardInterrupt: it was interrupted.
            TrainingError: it is gone without a word.
        """
        if values.dtype == torch.float64 and values.numel() <= _ROOM:
            return self._meet(values.detach().flatten()).view(values.shape).to(values.device)
        self._meet(torch.empty(0))
        return self._added(values)

    def tell(self, error: BaseException) -> BaseException:
        if self._has_ended:
            return error
        if isinstance(error, RuntimeError) and _is_of_transport(error):
            return self._gone()
        with suppress(TrainingError):  # the others are gone, too
            self._added(torch.tensor([1.0] + [0.0] * _ROOM, dtype=torch.float64), _LAST_WORDS)
            self._words_of(json.dumps([type(error).__name__, str(error)]))
        return error

    def _meet(self, values: Tensor) -> Tensor:
        around = torch.zeros(1 + _ROOM, dtype=torch.float64)
        around[1 : 1 + len(values)] = values.cpu()
        around = self._added(around)
        if around[0]:
            raise _raised(self._words_of(""))
        return around[1 : 1 + len(values)]

    def _words_of(self, error: str) -> list[str]:
        """What each process has to say of its error."""
        self._has_ended = True
        own = torch.tensor(list(error.encode()), dtype=torch.uint8)
        sizes = torch.zeros(self.size, dtype=torch.long)
        sizes[self.rank] = len(own)
        sizes = self._added(sizes)
        words = torch.zeros(self.size, int(sizes.max()), dtype=torch.uint8)
        words[self.rank, : len(own)] = own
        rows = zip(self._added(words), sizes.tolist(), strict=True)
        return [bytes(row[:size].tolist()).decode() for row, size in rows]

    def _added(self, values: Tensor, timeout: timedelta | None = None) -> Tensor:
        total = values.detach().to("cpu", copy=True).contiguous()
        try:
            work = dist.all_reduce(total, group=self.group, async_op=True)
            work.wait() if timeout is None else work.wait(timeout)
        except RuntimeError as error:
            raise self._gone() from error
        return total.to(values.device)

    def _gone(self) -> TrainingError:
        self._has_ended = True
        return TrainingError(
            f"another of the {self.size} processes is gone, or was not heard of for too long. "
            "Its own message says why; torchrun --max-restarts 3 starts all of them again."
        )


def world_here(device: str = "auto") -> World:
    """The processes that were started together with this one; `ALONE` where there are none.

    A group of `torch.distributed` that is there is used as it is. Else the one that a launcher
    announces in the environment (`torchrun`, `accelerate launch`) is joined, and left when the
    process ends; this process then computes on the accelerator of its number on this machine.
    All processes call it, before they call anything else of their world.

    Args:
        device: where they will compute, as `fl.fit` takes it.
    Raises:
        ConfigError: there are more processes on this machine than accelerators.
        TrainingError: the others could not be reached.
    """
    if not dist.is_available():
        return ALONE
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE") or 1) < 2:
            return ALONE
        _join(device)
    if dist.get_world_size() < 2:
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size(), _beside(dist.group.WORLD))


def refuse_several(what: str) -> None:
    """Refuse what one process does alone where a launcher started several.

    Raises:
        TrainingError: it did; says what to do.
    """
    count = int(os.environ.get("WORLD_SIZE") or 1)
    if dist.is_available() and dist.is_initialized():
        count = dist.get_world_size()
    if count > 1:
        raise TrainingError(
            f"started with {count} processes, and {what} works in one. Start it without a launcher."
        )


def is_restartable() -> bool:
    """Whether a launcher would start these processes again if one of them failed."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS") or 0) > 0


def is_restarted() -> bool:
    """Whether a launcher started these processes again after one of them had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0) > 0


@contextmanager
def together(world: World) -> Iterator[None]:
    """An error in it, on any process, ends it on all: with the words of the one that failed."""
    try:
        yield
    except BaseException as error:
        told = world.tell(error)
        if told is error:
            raise
        raise told from error


def gathered(world: World, own: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks; each may have another number.

    By a sum, which every world has: beside the bytes of a row stand zeros, so it keeps its bits.
    """
    if world.size == 1:
        return own
    counts = torch.zeros(world.size, dtype=torch.long)
    counts[world.rank] = len(own)
    ends = world.sum(counts).cumsum(0).tolist()
    rows = torch.zeros(ends[-1], *own.shape[1:], dtype=own.dtype, device=own.device)
    rows[ends[world.rank] - len(own) : ends[world.rank]] = own
    return world.sum(rows.flatten().view(torch.uint8)).view(own.dtype).view(rows.shape)


def gathered_bytes(world: World, own: bytes) -> bytes:
    """The same of bytes, one after the other."""
    if world.size == 1:
        return own
    given = torch.from_numpy(np.frombuffer(own, dtype=np.uint8).copy())
    return gathered(world, given).numpy().tobytes()


def gathered_names(world: World, own: Sequence[str]) -> tuple[str, ...]:
    """The same of texts without a zero character, as names of samples are."""
    if world.size == 1:
        return tuple(own)
    text = "".join(f"{name}\0" for name in own).encode(errors="surrogateescape")
    every = gathered_bytes(world, text)
    return tuple(every.decode(errors="surrogateescape").split("\0")[:-1])


def bits_of_first(world: World, own: Tensor) -> Tensor:
    """What the first process has, bit for bit; all give a tensor of one shape and dtype."""
    if world.size == 1:
        return own
    given = own if world.rank == 0 else torch.zeros_like(own)
    flat = given.detach().contiguous().view(-1).view(torch.uint8)
    return world.sum(flat).view(own.dtype).view(own.shape)


def decided(world: World, value: Any) -> Any:
    """What the first process decided, for all: plain data, as JSON gives them back.

    Args:
        value: of the first process; what the others give is not looked at.

    Example:
        >>> from frostline.world import ALONE, decided
        >>> decided(ALONE, {"rows": (1, 2)})
        {'rows': [1, 2]}
    """
    text = json.dumps(value) if world.rank == 0 else ""
    return json.loads("".join(gathered_names(world, [text] if world.rank == 0 else [])))


def _is_of_transport(error: RuntimeError) -> bool:
    """Whether a collective of torch's own failed; gloo's errors have no class of theirs (2.15)."""
    text = str(error)
    return isinstance(error, dist.DistError) or any(word in text for word in _OF_TRANSPORT)


def agreed(world: World, error: FrostlineError | None) -> None:
    """Go on where no process met an error; else all raise it, and may go on in another way.

    Args:
        error: that this process met.
    Raises:
        FrostlineError: of the kind and with the words of the first process that met one.
    """
    if not world.sum(torch.tensor([float(error is not None)], dtype=torch.float64)):
        return
    own = "" if error is None else json.dumps([type(error).__name__, str(error)])
    words = gathered_names(world, [own])
    raise _raised(words) if error is None else error


def _raised(words: Sequence[str]) -> BaseException:
    """The first error that was told, as one of its kind."""
    rank = next(number for number, said in enumerate(words) if said)
    kind, text = json.loads(words[rank])
    if kind == KeyboardInterrupt.__name__:
        return KeyboardInterrupt(f"process {rank} was interrupted")
    known = _kinds(FrostlineError).get(kind)
    who = f"process {rank}: "
    said = text if known else f"{kind}: {text}"
    error = (known or TrainingError)(f"{who}{said.removeprefix(who)}")
    error.process = rank
    return error


def _kinds(root: type[FrostlineError]) -> dict[str, type[FrostlineError]]:
    found = {root.__name__: root}
    for kind in root.__subclasses__():
        found |= _kinds(kind)
    return found


@lru_cache(maxsize=1)
def _beside(default: object) -> dist.ProcessGroup:
    """A group on the CPU beside the one that is there, made once."""
    del default
    return dist.new_group(backend="gloo")  # type: ignore[return-value]  # all ranks are in it


def _join(device: str) -> None:
    """Join those whom the launcher's environment announces."""
    from torch.distributed.distributed_c10d import PrefixStore  # a torch may be built without it
    from torch.distributed.rendezvous import rendezvous

    found = torch.accelerator.current_accelerator(check_available=True)
    on_cpu = found is None or device.partition(":")[0] == "cpu"
    backend = "gloo"
    if found is not None and not on_cpu:
        own, there = int(os.environ.get("LOCAL_RANK") or 0), torch.accelerator.device_count()
        if own >= there:
            raise ConfigError(
                f"process {own} of this machine has no {found.type} device of its own: there are "
                f"{there}. Start {there} on it (--nproc-per-node {there}), or compute on the CPU."
            )
        torch.accelerator.set_device_index(own)
        backend = f"cpu:gloo,{found.type}:{dist.get_default_backend_for_device(found)}"
    try:
        store, rank, size = next(rendezvous("env://"))
        # torchrun --standalone keeps one store for all its restarts (torch 2.15), in which gloo
        # finds the addresses of processes that are gone; so each start has names of its own.
        start = PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(backend, store=start, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise TrainingError(
            f"WORLD_SIZE announces {os.environ['WORLD_SIZE']} processes, and they could not be "
            f"reached at {where}: {error}. Start them with torchrun or accelerate launch."
        ) from error
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
