"""Where the time of a model goes: by kind of operation, and how fast each kind is.

    python -m benchmarks.profile "SAMUS on ViT-B, 256x256, embedding, batch 1"

Work is described as in the table of `benchmarks.speed`; all the ways to do it that are compared
there have a profile here, each of one round after one that does not count, in a process of its own.
"""

import re
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from adapterkit.system.allocator import keep_freed_memory
from adapterkit.system.command_line import console, run

if TYPE_CHECKING:
    from benchmarks.work import Contestant

KINDS = {
    "products: linear layers, convolutions, attention": (
        r"^(add)?mm$|^(baddbmm_?|bmm)$|conv|scaled_dot_product"
    ),
    "softmax": r"softmax",
    "norms and activations": r"norm|gelu|relu|max_pool|sigmoid",
    "copies": r"^(copy_|cat|clone|index|fill_|zero_|constant_pad_nd|col2im|im2col)",
    "the optimiser": r"(?i)adam|foreach|optimizer",
}
"""By what there is in the operation's name; the first that fits."""
ELSE = "element by element, and all else"


@dataclass(frozen=True)
class Config:
    work: Positional[str]
    """All work whose description contains this, in any case."""
    device: Literal["cpu", "cuda"] | None = None
    """Where to measure. By default on the GPU, where there is one."""


def main(config: Config) -> None:
    from benchmarks import measuring
    from benchmarks.contests import expected, groups

    contestants = dict.fromkeys(
        each
        for group in groups()
        for each in group
        if config.work.lower() in str(each.work).lower() and not each.compiled
    )
    if not contestants:
        raise ValueError(f"{config.work!r}: {expected()}")
    device = config.device or measuring.default_device()
    rates = measuring.ceilings(device)
    console.print(f"{measuring.machine(device)}; {measuring.in_words(rates, device)}")
    with measuring.PROCESSES.Pool(1, maxtasksperchild=1) as pool:
        for contestant in contestants:
            if contestant.precision in rates:
                rows = pool.apply(profiled, (contestant, device))
                rate = rates[contestant.precision]
                console.print(table(contestant, rows, rate), highlight=False, soft_wrap=True)


@dataclass
class Spent:
    """On one kind of operation."""

    seconds: float = 0.0
    flop: int = 0


def profiled(contestant: "Contestant", device: str) -> dict[str, Spent]:
    """What the work takes, by kind of operation; in a fresh process."""
    from torch.profiler import ProfilerActivity, profile
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.work import prepared

    if contestant.fast:
        keep_freed_memory()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    spent = {kind: Spent() for kind in [*KINDS, ELSE]}
    with ExitStack() as kept:
        do = prepared(contestant, device, kept)
        with FlopCounterMode(display=False) as counter:
            do()
        with profile(activities=activities, acc_events=True) as profiler:
            do()
    for operation, flop in counter.get_flop_counts()["Global"].items():
        spent[kind_of(str(operation))].flop += flop
    for event in profiler.key_averages():
        took = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        spent[kind_of(event.key)].seconds += took / 1e6
    return spent


def kind_of(operation: str) -> str:
    name = re.sub(r"^aten(::|\.)_?", "", operation)
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), ELSE)


def table(contestant: "Contestant", spent: dict[str, Spent], rate: float) -> str:
    """A row for each kind of operation."""
    from adapterkit.evaluation.tables import markdown

    whole = sum(each.seconds for each in spent.values())
    rows = [
        [
            kind,
            f"{each.seconds:.3f}",
            f"{each.seconds / whole:.0%}",
            f"{each.flop / 1e9:,.2f}" if each.flop else "-",
            f"{each.flop / each.seconds / rate:.0%}" if each.flop else "-",
        ]
        for kind, each in spent.items()
    ]
    header = [f"{contestant.work}, {contestant}", "s", "share", "GFLOP", "of the ceiling"]
    return markdown(header, rows)


if __name__ == "__main__":
    run(main, Config)
