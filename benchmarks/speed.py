"""How fast adapted models are, and how much memory they take: stock against fast, side by side.

    python -m benchmarks.speed                      all of it, on ViT-B and on the small Sam
    python -m benchmarks.speed --only samus --rounds 9

"Stock" is the same parts on `segment_anything`'s own forward, under the default allocator; "fast"
is the same with `ak.fast` and `keep_freed_memory`. Each contestant has a process of its own,
and the contestants of a group take turns, so that a machine that is busy for a while is so for all.
All weights are random, which times do not depend on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adapterkit.system.command_line import check_positive, console, run

if TYPE_CHECKING:
    from benchmarks.measuring import Measured


@dataclass(frozen=True)
class Config:
    out: Path | None = None
    """Folder for the table, the times and the plot. By default, a new one under runs/speed."""
    only: tuple[str, ...] = ()
    """Measure only the groups whose description contains one of these, in any case: samus,
    "batch 4"."""
    rounds: int = 5
    """Turns of each contestant, after one that does not count."""
    device: Literal["cpu", "cuda"] | None = None
    """Where to measure. By default on the GPU, where there is one."""


def main(config: Config) -> None:
    import torch
    from rich.progress import track

    from adapterkit.training.run_folder import new_folder, write_text
    from benchmarks.contests import costs, draw_scaling, expected, groups, is_chosen, table, times
    from benchmarks.measuring import ceilings, default_device, in_words, machine, measure

    check_positive(config, "rounds")
    chosen = [group for group in groups() if is_chosen(group, config.only)]
    if not chosen:
        raise ValueError(f"--only {' '.join(map(repr, config.only))}: {expected()}")
    folder = new_folder(config.out, "speed")
    device = config.device or default_device()
    rates = ceilings(device)
    if torch.bfloat16 not in rates:
        console.print(f"bf16 is slower than float32 on this {device}: left out")
    chosen = [[each for each in group if each.precision in rates] for group in chosen]
    heading = f"{machine(device)}\n{in_words(rates, device)}\n"
    console.print(heading, highlight=False, soft_wrap=True)
    results: list[list[Measured]] = []
    for group in track(chosen, "groups", console=console, transient=True):
        results.append(measure(group, config.rounds, device))
        console.print(table(results[-1:], rates), highlight=False, soft_wrap=True)
        # After every group, so that an interruption loses one group only.
        write_text(folder / "table.md", f"{heading}\n{table(results, rates)}")
        write_text(folder / "times.csv", times(results))
    answers = costs(results)
    if answers:
        console.print(f"\n{answers}", highlight=False, soft_wrap=True)
        write_text(folder / "table.md", f"{heading}\n{table(results, rates)}\n\n{answers}\n")
    draw_scaling(results, folder / "scaling.png")
    console.print(f"results in {folder}", soft_wrap=True)


if __name__ == "__main__":
    run(main, Config)
