"""How fast adapted models are, and how much memory they take: stock against fast, side by side.

    python -m benchmarks.speed                      all of it, on ViT-B and on the small Sam
    python -m benchmarks.speed --only samus --rounds 9

"Stock" is the same parts on `segment_anything`'s own forward, under the default allocator; "fast"
is the same with `ak.fast` and `keep_freed_memory`. Each contestant has a process of its own,
and the contestants of a group take turns, so that a machine that is busy for a while is so for all.
All weights are random, which times do not depend on.
"""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from torch.utils.flop_counter import FlopCounterMode

import adapterkit as ak
from adapterkit.evaluation.tables import markdown
from adapterkit.methods import find_method, method_names
from adapterkit.promptable.stock_sam import MINI
from adapterkit.system.allocator import keep_freed_memory
from adapterkit.system.command_line import check_positive, run
from adapterkit.system.files import atomic_write
from adapterkit.training.embeddings import cached_embeddings
from adapterkit.training.loop import checkpointed_blocks
from adapterkit.training.losses import dice_bce_loss
from adapterkit.training.run_folder import new_folder, write_text
from benchmarks.contestant import peak_bytes

BASES = {
    "ViT-B": ak.SamConfig(),
    "ViT-H": ak.SamConfig(width=1280, depth=32, num_heads=16, global_blocks=(7, 15, 23, 31)),
    "small Sam": MINI,
    "toy Sam": replace(MINI, width=32, depth=2, num_heads=2, global_blocks=(1,), image_size=256),
}
METHODS = {"SAM": None, **{find_method(name).title: name for name in method_names()}}
"""The titles of methods, and their names; SAM is the base as it comes."""

CEILING_SIDES = {"cpu": 2048, "cuda": 8192}
"""Of the square matrices whose product is taken for all that a machine can do."""


@dataclass(frozen=True)
class Work:
    """What is timed: an image embedding, or a training step on one point per structure."""

    base: str
    method: str
    task: Literal["embedding", "training step"]
    image_size: int
    batch: int
    structures: int = 1
    """Prompted in each image, in training."""

    def __str__(self) -> str:
        several = f", {self.structures} structures each" if self.structures > 1 else ""
        return (
            f"{self.method} on {self.base}, {self.image_size}x{self.image_size}, {self.task}, "
            f"batch {self.batch}{several}"
        )


@dataclass(frozen=True)
class Contestant:
    """A way to do some work."""

    work: Work
    fast: bool = False
    bf16: bool = False
    checkpointed: bool = False
    compiled: bool = False
    """The image encoder, by `torch.compile`."""
    from_embeddings: bool = False
    """Image embeddings are read from files; the first round, which does not count, writes them."""

    @property
    def precision(self) -> torch.dtype:
        return torch.bfloat16 if self.bf16 else torch.float32

    def __str__(self) -> str:
        options = ["fast" if self.fast else "stock"]
        options += ["bf16"] if self.bf16 else []
        options += ["checkpointed"] if self.checkpointed else []
        options += ["compiled"] if self.compiled else []
        options += ["from embeddings"] if self.from_embeddings else []
        return ", ".join(options)


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


@dataclass(frozen=True)
class Config:
    out: Path | None = None
    """Folder for the table, the times and the plot. By default, a new one under runs/speed."""
    only: tuple[str, ...] = ()
    """Measure only the groups whose description contains one of these, in any case: samus,
    "batch 4"."""
    rounds: int = 5
    """Turns of each contestant, after one that does not count."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to measure."""


def main(config: Config) -> None:
    check_positive(config, "rounds")
    chosen = [group for group in groups() if is_chosen(group, config.only)]
    if not chosen:
        raise ValueError(f"--only {' '.join(map(repr, config.only))}: {expected()}")
    folder = new_folder(config.out, "speed")
    console = Console()
    rates = ceilings(config.device)
    if torch.bfloat16 not in rates:
        console.print(f"bf16 is slower than float32 on this {config.device}: left out")
    chosen = [[each for each in group if each.precision in rates] for group in chosen]
    heading = f"{machine(config.device)}\n{in_words(rates, config.device)}\n"
    console.print(heading, highlight=False, soft_wrap=True)
    results: list[list[Measured]] = []
    for group in track(chosen, "groups", console=console, transient=True):
        results.append(measure(group, config.rounds, config.device))
        console.print(table(results[-1:], rates), highlight=False, soft_wrap=True)
        # After every group, so that an interruption loses one group only.
        write_text(folder / "table.md", f"{heading}\n{table(results, rates)}")
        write_text(folder / "times.csv", times(results))
    draw_scaling(results, folder / "scaling.png")
    console.print(f"results in {folder}", soft_wrap=True)


def groups() -> Iterator[list[Contestant]]:
    """Who competes with whom; the first of each group is what the others are compared with."""
    for base in ("ViT-B", "small Sam"):
        size = 256 if base == "ViT-B" else 128
        for method in ("SAM", "SAMUS", "SAMed", "MSA"):
            for batch in (1, 8):
                work = Work(base, method, "embedding", size, batch)
                yield [
                    Contestant(work),
                    Contestant(work, fast=True),
                    Contestant(work, fast=True, bf16=True),
                ]
        for method in ("SAMUS", "SAMed", "MSA"):
            for batch in (1, 4, 8):
                work = Work(base, method, "training step", size, batch)
                yield [
                    Contestant(work),
                    Contestant(work, fast=True),
                    Contestant(work, fast=True, bf16=True),
                    Contestant(work, fast=True, checkpointed=True),
                ]
    work = Work("ViT-B", "MedSAM", "training step", 256, 4)
    yield [
        Contestant(work),
        Contestant(work, fast=True),
        Contestant(work, fast=True, from_embeddings=True),
    ]
    # SAM as it comes against SAMUS at its smaller input.
    original = Work("ViT-B", "SAM", "embedding", 1024, 1)
    samus = Work("ViT-B", "SAMUS", "embedding", 256, 1)
    yield [
        Contestant(original),
        Contestant(samus),
        Contestant(samus, fast=True),
        Contestant(samus, fast=True, bf16=True),
    ]
    compiled = [Contestant(samus, compiled=True, fast=fast) for fast in (False, True)]
    yield [Contestant(samus), Contestant(samus, fast=True), *compiled]
    # An epoch in which every structure is seen: one encoder pass for each, or one for each image.
    each = Work("ViT-B", "SAMUS", "training step", 256, 4)
    together = replace(each, structures=3)
    yield [
        Contestant(each),
        Contestant(together, fast=True),
        Contestant(together, fast=True, bf16=True),
    ]
    for size in (128, 256, 512, 1024):
        work = Work("ViT-B", "SAM", "embedding", size, 1)
        yield [Contestant(work), Contestant(work, fast=True)]


def describe(group: Sequence[Contestant]) -> str:
    works = dict.fromkeys(str(each.work) for each in group)
    return " / ".join(works)


def expected() -> str:
    """What a user may name, for an error message."""
    works = [each.work for group in groups() for each in group]
    methods = ", ".join(dict.fromkeys(work.method for work in works))
    bases = ", ".join(dict.fromkeys(work.base for work in works))
    example = str(works[0])
    return f"expected words of a description such as {example!r}; there are {methods}, on {bases}"


def is_chosen(group: Sequence[Contestant], only: Sequence[str]) -> bool:
    return not only or any(each.lower() in describe(group).lower() for each in only)


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
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=compete, args=(contestant, device, there), daemon=True)
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


def prepared(contestant: Contestant, device: str, kept: ExitStack) -> Callable[[], None]:
    """The work, with all that it needs at hand until `kept` is closed."""
    work = contestant.work
    config = BASES[work.base]
    if work.method == "SAM":
        config = replace(config, image_size=work.image_size)
    sam, method = ak.build_sam(config, seed=0), METHODS[work.method]
    if method is not None:
        ak.inject(sam, method, image_size=work.image_size)
    sam.to(device)
    with torch.device(device):
        images = 255 * torch.rand(work.batch, 3, work.image_size, work.image_size)
        points = work.image_size * torch.rand(work.batch, work.structures, 1, 2)
        labels = torch.ones(work.batch, work.structures, 1, dtype=torch.long)
    if contestant.fast:
        ak.fast(sam)
    if contestant.compiled:
        sam.image_encoder.compile()
    segmenter = ak.Segmenter(sam)
    processor = "cuda" if device == "cuda" else "cpu"
    autocast = torch.autocast(processor, torch.bfloat16, enabled=contestant.bf16)

    @torch.no_grad()
    def embed() -> None:
        with autocast:
            segmenter.encode(images)

    if work.task == "embedding":
        return embed

    segmenter.train()
    trained = [each for each in segmenter.parameters() if each.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-4)
    if contestant.checkpointed:
        kept.enter_context(checkpointed_blocks(segmenter))
    if contestant.from_embeddings:
        folder = kept.enter_context(tempfile.TemporaryDirectory())
        kept.enter_context(cached_embeddings(segmenter, Path(folder)))

    def step() -> None:
        with autocast:
            logits = segmenter(images, ak.Prompts(points, labels)).low_res_logits
            target = (torch.rand_like(logits) > 0.5).to(logits.dtype)
            loss = dice_bce_loss(logits, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


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
    end = time.perf_counter() + 1
    # For a second: a shorter while may be a busy one.
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(one, other)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def table(results: Sequence[Sequence[Measured]], rates: dict[torch.dtype, float]) -> str:
    """A row for each contestant; ratios of time are per image and structure, median and range.

    Memory is given twice: the peak of the whole process, and its ratio; then the same of what came
    on top of the imported libraries.
    """
    rows = []
    for group in results:
        first = group[0]
        for each in group:
            work = each.contestant.work
            share = share_of_work(work) / share_of_work(first.contestant.work)
            ratios = [a / b * share for a, b in zip(first.seconds, each.seconds, strict=True)]
            rate = rates[each.contestant.precision]
            own, firsts = (one.peak_bytes - one.library_bytes for one in (each, first))
            seconds = statistics.median(each.seconds)
            rows.append(
                [
                    str(work),
                    str(each.contestant),
                    f"{seconds:#.4g}",
                    f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                    f"{each.peak_bytes / 2**30:.2f}",
                    f"{each.peak_bytes / first.peak_bytes:.2f}",
                    f"{own / 2**30:.2f}",
                    f"{own / firsts:.2f}",
                    f"{each.flop / 1e9:,.0f}" if each.flop else "-",
                    f"{each.flop / seconds / rate:.0%}" if each.flop else "-",
                ]
            )
    header = ["work", "how", "s", "times faster", "GiB", "ratio", "own GiB", "ratio", "GFLOP"]
    header.append("of the ceiling")
    return markdown(header, rows)


def share_of_work(work: Work) -> int:
    """Embeddings, or in training images times structures, that are done at once."""
    return work.batch * (work.structures if work.task == "training step" else 1)


def times(results: Sequence[Sequence[Measured]]) -> str:
    """Every single time, as CSV."""
    lines = ["group,work,how,round,seconds,peak_bytes,library_bytes,flop"]
    for number, group in enumerate(results, 1):
        for each in group:
            for turn, seconds in enumerate(each.seconds, 1):
                work, how = f'"{each.contestant.work}"', f'"{each.contestant}"'
                counts = f"{each.peak_bytes},{each.library_bytes},{each.flop}"
                lines.append(f"{number},{work},{how},{turn},{seconds:.6f},{counts}")
    return "\n".join(lines) + "\n"


def draw_scaling(results: Sequence[Sequence[Measured]], path: Path) -> None:
    """Seconds against the side of the image, for SAM's embedding."""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    lines: dict[str, dict[int, float]] = {}
    for group in results:
        for each in group:
            work = each.contestant.work
            if (work.base, work.method, work.task, work.batch) == ("ViT-B", "SAM", "embedding", 1):
                line = lines.setdefault(str(each.contestant), {})
                line[work.image_size] = statistics.median(each.seconds)
    sides = sorted({side for line in lines.values() for side in line})
    # Where sizes compete, not all ways do.
    for name, line in lines.items():
        if len(line) == len(sides):
            axes.loglog(sides, [line[side] for side in sides], "o-", label=name)
    axes.set_xticks(sides, map(str, sides))
    axes.set_xticks([], minor=True)
    axes.set(xlabel="side of the image (pixels)", ylabel="seconds for an embedding of SAM ViT-B")
    if lines:
        axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)


if __name__ == "__main__":
    run(main, Config)
