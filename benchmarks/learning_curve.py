"""Dice against the number of training patients: where a pretrained base has to show its worth.

    python -m benchmarks.learning_curve                  synthetic echo, a small SAM
    python -m benchmarks.learning_curve --data ../shared/data/camus224 --seeds 0 1 2
    python -m benchmarks.learning_curve --table          table and figure of finished runs, anew

Every system is trained in as many steps of the optimiser with every number of patients: of few
patients each image comes more often. The patients of a smaller number are among those of a greater
one, and validation and test patients are the same for all. For each number there is a folder that
`benchmarks.compare` knows, `patients_10` say; the same command goes on where it was interrupted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapterkit.system.command_line import check_positive, console, run
from benchmarks.compare.__main__ import Config as Comparison
from benchmarks.compare.__main__ import Name, perform_all, setting_of

if TYPE_CHECKING:
    from benchmarks.compare.results import SystemResults
    from benchmarks.compare.setting import Setting

RUNS = Path("runs/learning_curve")


@dataclass(frozen=True)
class Config:
    methods: tuple[Name, ...] = ("unet", "transunet", "samus-plus")
    """The systems, of those of `benchmarks.compare`; of several kinds of prompts that one is
    tested with there, the first alone is here."""
    training_patients: tuple[int, ...] = (5, 10, 20, 50, 100, 315)
    """Numbers of them; those that are more than there are become all."""
    seeds: tuple[int, ...] = (0,)
    """Each is a run of every system and number."""
    steps: int = 640
    """Of the optimiser, for every number of patients, up to rounding."""
    epochs: int = 4
    """After each the validation Dice is measured, and the best one's weights are tested. Fewer
    where one pass over all images has more steps."""
    data: Path | None = None
    """As of `benchmarks.compare`; without it, synthetic echo of 50 patients is made and used."""
    checkpoint: Path | None = None
    """A SAM checkpoint. Without it, adapterkit's own small SAM, and networks of its size."""
    patients: int | None = None
    """Use only so many patients, drawn at random; without --data, make so many."""
    augment: bool = False
    """Augment the training images as the published SAMUS does."""
    batch_size: int = 8
    """Images per batch."""
    ray: tuple[str, ...] | None = None
    """As of `benchmarks.compare`."""
    table: bool = False
    """Only make table and figure anew, of the runs in --out."""
    out: Path | None = None
    """Folder for all. By default runs/learning_curve/ and the name of the data."""


def main(config: Config) -> None:
    from benchmarks.compare.runs import is_finished
    from benchmarks.compare.setting import begin

    positive = "steps", "epochs", "patients", "batch_size"
    check_positive(config, *positive)
    for option in ("methods", "seeds", "training_patients"):
        given = getattr(config, option)
        if not given or len(set(given)) < len(given):
            name = option.replace("_", "-")
            raise ValueError(f"--{name} {' '.join(map(str, given))}: expected some, each once")
    if min(config.training_patients) < 1:
        raise ValueError("--training-patients: expected positive numbers")
    if config.table:
        show(config.out or last_curve())
        return
    settings = settings_of(config)
    first = next(iter(settings.values()))
    out = config.out or RUNS / first.data.name
    pending = []
    for count, setting in settings.items():
        folder = out / f"patients_{count}"
        begin(folder, setting)
        folder = folder.resolve()
        every = [(folder, name, seed) for seed in config.seeds for name in config.methods]
        pending += [each for each in every if not is_finished(*each)]
    console.print(f"{len(pending)} runs to do in {out}", soft_wrap=True)
    try:
        perform_all(pending, config.ray)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on from here") from None
    show(out)


def settings_of(config: Config) -> "Mapping[int, Setting]":
    """The comparison of each number of training patients."""
    from benchmarks.compare.setting import data_of

    whole = setting_of(
        Comparison(
            methods=config.methods,
            seeds=config.seeds,
            data=config.data,
            checkpoint=config.checkpoint,
            patients=config.patients,
            augment=config.augment,
            batch_size=config.batch_size,
        )
    )
    _, split = data_of(whole)
    found = {}
    for count in sorted({min(each, len(split.train)) for each in config.training_patients}):
        setting = replace(whole, training_patients=count)
        collection, part = data_of(setting)
        images = len(collection.of_groups(part.train))
        epochs, repeats = passes(images, config.steps, config.epochs, config.batch_size)
        found[count] = replace(setting, epochs=epochs, repeats=repeats, main_prompts_alone=True)
    return found


def passes(images: int, steps: int, epochs: int, batch_size: int) -> tuple[int, int]:
    """Epochs, and how often each image comes in one, for about so many steps."""
    wanted = steps * batch_size
    repeats = max(1, round(wanted / (epochs * images)))
    return (epochs, repeats) if repeats > 1 else (max(1, round(wanted / images)), 1)


def show(out: Path) -> None:
    """Write table and figure of the runs in a folder, and print the table.

    Raises:
        ValueError: there are none.
    """
    from adapterkit.training.run_folder import write_text
    from benchmarks.compare.results import read_results, write_csv
    from benchmarks.compare.setting import read_setting

    numbers = sorted(int(each.name.removeprefix("patients_")) for each in out.glob("patients_*"))
    of_numbers: dict[int, list[SystemResults]] = {}
    settings: dict[int, Setting] = {}
    for count in numbers:
        folder = out / f"patients_{count}"
        settings[count] = read_setting(folder)
        results = [each for each in read_results(folder, settings[count]) if each.is_main]
        if results:
            of_numbers[count] = results
            write_csv(folder / "results.csv", results)
    if not of_numbers:
        raise ValueError(f"{out} holds no run yet")
    text = report(settings, of_numbers)
    write_text(out / "table.md", text)
    draw(of_numbers, out / "learning_curve.png")
    console.print(text, markup=False, soft_wrap=True)
    console.print(f"in {out}: table.md, learning_curve.png", soft_wrap=True)


def report(
    settings: "Mapping[int, Setting]", of_numbers: "Mapping[int, Sequence[SystemResults]]"
) -> str:
    """The table, with what all runs share."""
    from adapterkit.evaluation.tables import markdown
    from benchmarks.compare.tables import cell

    titles = list(dict.fromkeys(each.full_title for found in of_numbers.values() for each in found))
    rows = []
    for count, found in of_numbers.items():
        cells = {
            each.full_title: cell(each, [100 * dice for dice in each.over_seeds("dice")], "{:.2f}")
            for each in found
        }
        steps = next((_steps(each) for each in found if each.finished), "–")
        rows.append([str(count), steps, *(cells.get(title, "–") for title in titles)])
    setting = next(iter(settings.values()))
    return (
        "# Dice against the number of training patients\n\n"
        f"Data: {setting.data_name}. Base: {setting.base.name}. Batches of {setting.batch_size} "
        f"{'augmented ' if setting.augment else ''}images by the {setting.schedule} schedule; of "
        "few patients each image comes more often. The test patients are the same in all rows. "
        "Mean Dice (%) of all structures, over the test images, ± the standard deviation over "
        "seeds where there are several.\n\n"
        f"{markdown(['training patients', 'steps', *titles], rows)}\n"
    )


def _steps(each: "SystemResults") -> str:
    import math

    metrics = each.finished[0].metrics
    per_epoch = math.ceil(metrics["images"]["train"] / metrics["settings"]["batch_size"])
    return str(metrics["settings"]["epochs"] * per_epoch)


def draw(of_numbers: "Mapping[int, Sequence[SystemResults]]", path: Path) -> None:
    """A line for each system, on a logarithmic axis of patients."""
    from matplotlib.ticker import NullFormatter

    from adapterkit.evaluation.plots import new_figure, save_figure
    from benchmarks.compare.results import mean_and_deviation

    figure = new_figure(5.2, 3.4)
    axes = figure.add_subplot()
    lines: dict[str, list[tuple[int, float, float]]] = {}
    for count, found in of_numbers.items():
        for each in found:
            dice = [100 * value for value in each.over_seeds("dice")]
            if dice:
                mean, deviation = mean_and_deviation(dice)
                lines.setdefault(each.full_title, []).append((count, mean, deviation or 0))
    for (title, points), marker in zip(lines.items(), "osD^vP*X" * len(lines), strict=False):
        counts, means, deviations = zip(*points, strict=True)
        axes.errorbar(
            counts, means, yerr=deviations if any(deviations) else None,
            marker=marker, markersize=4, linewidth=1.2, capsize=2, label=title,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(list(of_numbers), list(map(str, of_numbers)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("training patients", fontsize=8)
    axes.set_ylabel("Dice (%)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(linewidth=0.4, alpha=0.5)
    axes.legend(fontsize=7, frameon=False)
    save_figure(figure, path)


def last_curve() -> Path:
    """The folder that was begun last.

    Raises:
        ValueError: there is none.
    """
    found = sorted(RUNS.glob("*/patients_*/comparison.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ValueError(f"--table: there is no learning curve in {RUNS}; give its folder by --out")
    return found[-1].parent.parent


if __name__ == "__main__":
    run(main, Config)
