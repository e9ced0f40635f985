"""Timing contestants in turns, each in a process of its own, and what the machine can do."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from adapterkit.system.allocator import keep_freed_memory
from benchmarks.contestant import peak_bytes
from benchmarks.work import Contestant, Work, prepared

CEILING_SIDES = {"cpu": 2048, "cuda": 8192}
"""Of the square matrices whose product is taken for all that a machine can do."""

PROCESSES: SpawnContext | ForkServerContext = multiprocessing.get_context("spawn")
"""Of those that are measured: memory that a fork shares would count as none of its own."""

CEILING_SECONDS = 1.0
"""For which that is tried: a shorter while may be a busy one."""


@dataclass(frozen=True)
class Measured:
    """What one contestant took.

    Attributes:
        seconds: in each round.
        peak_bytes: of its process, or on the GPU of its tensors.
        library_bytes: of these, what the process held when it had imported what it needs.
        flop: floating-point operations of one round, in matrix products and convolutions.
    """

    contestant: Contestant
    seconds: Sequence[float]
    peak_bytes: int
    library_bytes: int
    flop: int


def measure(
    group: Sequence[Contestant], rounds: int, device: str, seconds: float | None = None
) -> list[Measured]:
    """Time the contestants in turns, and count what they compute.

    Each has a process of its own for all its turns, or one for each turn where they do not fit into
    memory side by side. Those that have one for all get ready at the same time.

    Args:
        group: the contestants.
        rounds: turns of each.
        device: "cpu" or "cuda".
        seconds: how long to wait for an answer of a contestant; None: for ever.

    Raises:
        ValueError: a contestant's process ended, or took longer.
    """
    apart = any(is_large(each.work) for each in group)
    with ExitStack() as stack:
        asks = [competing(each, device, apart, stack, seconds) for each in group]
        if not apart:
            with ThreadPoolExecutor(len(asks)) as pool:
                list(pool.map(lambda ask: ask("prepare"), asks))
        turns: list[list[Turn]] = [[ask("turn") for ask in asks] for _ in range(rounds)]
        # After the turns, whose peaks do not have what counting keeps.
        flops: list[int] = [ask("count") for ask in asks]
    return [
        Measured(
            contestant,
            [each.seconds for each in own],
            max(each.peak_bytes for each in own),
            own[0].library_bytes,
            flop,
        )
        for contestant, own, flop in zip(group, zip(*turns, strict=True), flops, strict=True)
    ]


def is_large(work: Work) -> bool:
    """Whether a step takes so much memory that few contestants fit into 24 GiB."""
    return (work.base, work.task) == ("ViT-B", "training step") and work.batch >= 8


@dataclass(frozen=True)
class Turn:
    """What one turn took; see `Measured`."""

    seconds: float
    peak_bytes: int
    library_bytes: int


Order = Literal["prepare", "turn", "count"]


def competing(
    contestant: Contestant, device: str, apart: bool, stack: ExitStack, seconds: float | None
) -> Callable[[Order], Any]:
    """What has a contestant take a turn, a `Turn`, or count its operations, an integer.

    It does so in one process, or each time in another; they end with `stack`.
    """

    def start() -> Connection:
        here, there = PROCESSES.Pipe()
        arguments = (contestant, device, there)
        process = PROCESSES.Process(target=compete, args=arguments, daemon=True)
        process.start()
        there.close()
        stack.callback(end, process, seconds)
        return stack.enter_context(here)

    def ask(connection: Connection, order: Order) -> Any:
        try:
            connection.send(order)
            if connection.poll(seconds):
                return connection.recv()
        except (EOFError, ConnectionError):
            raise ValueError(f"{contestant.work}, {contestant}: its process ended") from None
        raise ValueError(f"{contestant.work}, {contestant}: no answer within {seconds:.0f} s")

    def ask_apart(order: Order) -> Any:
        connection = start()
        answer = ask(connection, order)
        connection.close()
        return answer

    return ask_apart if apart else partial(ask, start())


def end(process: BaseProcess, seconds: float | None) -> None:
    """Wait until a process ends, which has no more orders, or if that has a limit, make it end."""
    process.join(seconds and 5)
    if process.is_alive():
        process.kill()
        process.join()


def compete(contestant: Contestant, device: str, connection: Connection) -> None:
    """A contestant's process: answers orders until the other end is closed.

    Before its first turn it does its work once, which does not count.
    """
    libraries = most_held(device)
    if contestant.fast:
        keep_freed_memory()
    received = orders(connection)
    order = next(received, None)
    if order is None:
        return
    with ExitStack() as kept:
        do = prepared(contestant, device, kept)
        if order != "count":
            do()
        for each in chain([order], received):
            if each == "prepare":
                connection.send(None)
            elif each == "turn":
                connection.send(Turn(timed(do, device), most_held(device), libraries))
            else:
                connection.send(0 if contestant.compiled else counted(do))


def orders(connection: Connection) -> Iterator[Order]:
    while True:
        try:
            yield connection.recv()
        except EOFError:
            return


def timed(do: Callable[[], None], device: str) -> float:
    """Seconds that it takes, on a GPU by its own clock."""
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        do()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def counted(do: Callable[[], None]) -> int:
    """Operations that it takes. Compiled code does not tell them."""
    with FlopCounterMode(display=False) as counter:
        do()
    return counter.get_total_flops()


def most_held(device: str) -> int:
    """The most bytes so far: of the GPU's tensors, or of all that this process has in memory."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else peak_bytes()


def default_device() -> str:
    """The GPU, where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def ceilings(device: str) -> dict[torch.dtype, float]:
    """The best rates of the precisions that are worth measuring."""
    rates = {torch.float32: ceiling(device, torch.float32)}
    # Without instructions for it, bf16 is a hundred times slower than float32.
    small = 256
    if ceiling(device, torch.bfloat16, small) > ceiling(device, torch.float32, small):
        rates[torch.bfloat16] = ceiling(device, torch.bfloat16)
    return rates


def machine(device: str) -> str:
    name = f"cuda, {torch.cuda.get_device_name()}" if device == "cuda" else device
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def in_words(rates: dict[torch.dtype, float], device: str) -> str:
    found = ", ".join(f"{str(key)[6:]} {rate / 1e9:,.0f} GFLOP/s" for key, rate in rates.items())
    return f"matrix product of {CEILING_SIDES[device]}: {found}"


def ceiling(device: str, dtype: torch.dtype, side: int | None = None) -> float:
    """The best rate of a product of square matrices, in floating-point operations a second."""
    side = side or CEILING_SIDES[device]
    one, other = torch.rand(2, side, side, device=device).to(dtype).unbind(0)
    best = float("inf")
    end = time.perf_counter() + CEILING_SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(one, other)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
