"""Who competes with whom in the measurements of speed, and what that came to."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adapterkit.evaluation.tables import markdown
from adapterkit.system.files import atomic_write
from benchmarks.measuring import Measured
from benchmarks.work import Contestant, Work, share_of_work, trained_parameters


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
    # What it costs to answer: an image's embedding, all its structures, and one more click.
    for method in ("SAMUS+", "SAMUS"):
        for base, size in (("ViT-B", 256), ("small Sam", 128)):
            yield [
                Contestant(Work(base, method, task, size, 1, structures=3))
                for task in ("encoding", "all structures", "further prompt")
            ]
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


def costs(results: Sequence[Sequence[Measured]]) -> str:
    """What it costs to answer, of the groups that measured it; "" without any.

    A row for each method and base: operations for all structures of an image, and what a further
    prompt takes beside the embedding, by operations and by the median of the times.
    """
    rows = []
    for group in results:
        of_tasks = {each.contestant.work.task: each for each in group}
        if not {"encoding", "all structures", "further prompt"} <= of_tasks.keys():
            continue
        every, further = of_tasks["all structures"], of_tasks["further prompt"]
        encoding, work = of_tasks["encoding"], every.contestant.work
        by_time = statistics.median(further.seconds) / statistics.median(encoding.seconds)
        rows.append(
            [
                f"{work.method} on {work.base}, {work.image_size}x{work.image_size}",
                f"{trained_parameters(work) / 1e6:.2f} M",
                f"{every.flop / 1e9:,.1f}",
                f"{further.flop / encoding.flop:.1%}",
                f"{by_time:.1%}",
            ]
        )
    heads = ["what", "trained", "GFLOP, all of 3 structures", "further prompt, operations", "time"]
    return markdown(heads, rows) if rows else ""


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
