"""Compare adapter methods of a Segment Anything model, networks and prompts on equal terms.

    python -m benchmarks.compare                 all systems, synthetic echo, a small SAM
    python -m benchmarks.compare --data ../shared/data/camus224 --methods samus samed unet \
        --seeds 0 1 2
    python -m benchmarks.compare --data CAMUS_public --checkpoint sam_vit_b_01ec64.pth --paper
    python -m benchmarks.compare --table         tables and figures of finished runs, anew

Every system is trained on the same images of the same patients for the same number of epochs and
tested on the same others, from the same clicks. Each of its runs, one for every seed, has a folder
of its own. The same command goes on where it was interrupted, and tries failed runs again.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adapterkit.system.command_line import check_positive, console, run
from benchmarks.compare.systems import SYSTEMS, Base, Precision, ScheduleName

if TYPE_CHECKING:
    from benchmarks.compare.engines import Run
    from benchmarks.compare.setting import Setting

    Name = str
else:
    Name = Literal[tuple(SYSTEMS)]

RUNS = Path("runs/compare")
SMALL_PATIENTS, SMALL_EPOCHS = 50, 8
"""So that all systems take less than 45 minutes on 2 cores."""
PAPER_EPOCHS = 50


@dataclass(frozen=True)
class Config:
    methods: tuple[Name, ...] = tuple(SYSTEMS)
    """The systems to run; those of earlier commands in the same folder stay in the tables."""
    seeds: tuple[int, ...] = (0,)
    """Each is a run of every system: its weights, order, clicks and augmentation."""
    data: Path | None = None
    """CAMUS as it is unpacked, or whatever `adapterkit train` takes. Without it, synthetic echo is
    made and used."""
    checkpoint: Path | None = None
    """Of a Segment Anything model, sam_vit_b_01ec64.pth say: a file, a folder of transformers, or a
    name on the Hugging Face Hub. Without it, adapterkit's own small SAM, and networks of its
    size."""
    paper: bool = False
    """The paper's setting and its numbers beside: all patients, 50 epochs, augmented images."""
    schedule: ScheduleName = "common"
    """One optimiser and learning rate for all adapters and one for all networks, or each system's
    published ones."""
    epochs: int | None = None
    """Passes over the training images. By default 8, or the paper's 50 with a checkpoint."""
    patients: int | None = None
    """Use only so many patients, drawn at random; without --data, make so many, 50 by default."""
    training_patients: int | None = None
    """Train on so many of the training patients alone, with the same others for the test."""
    trained_on: str | None = None
    """Train and validate on the images of one kind alone, as ATTRIBUTE=VALUE: view=2CH, or
    quality=Good where the data state it. The tables then have the test images of each kind apart,
    and the differences are of those that are out of the training's domain."""
    augment: bool = False
    """Augment the training images as the published SAMUS does."""
    batch_size: int = 8
    """Images per batch of the common schedule."""
    learning_rate: float | None = None
    """Of all systems, instead of their schedules'; to choose one on the validation patients."""
    mixed_precision: Precision | None = None
    """Of the training."""
    activation_checkpointing: bool = False
    """Save memory by computing the blocks of a trained SAM encoder twice."""
    ray: tuple[str, ...] | None = None
    """Spread the runs over the Ray cluster at this address, or over this machine's cores or GPUs
    with no address given."""
    table: bool = False
    """Only make tables and figures anew, of the runs in --out, or of the last comparison."""
    out: Path | None = None
    """Folder of the comparison. By default runs/compare/ and the name of the data."""


def main(config: Config) -> None:
    from benchmarks.compare.runs import is_finished
    from benchmarks.compare.setting import begin, data_of

    if config.table:
        if config != Config(table=True, out=config.out):
            raise ValueError("--table takes all from the comparison's folder; give --out alone")
        show(config.out or last_comparison())
        return
    check(config)
    setting = setting_of(config)
    folder = config.out or RUNS / (setting.data.name + ("_paper" if config.paper else ""))
    collection, split = data_of(setting)
    begin(folder, setting)
    folder = folder.resolve()
    every = [(folder, name, seed) for seed in config.seeds for name in config.methods]
    pending = [each for each in every if not is_finished(*each)]
    counts = [len(collection.of_groups(groups)) for groups in asdict(split).values()]
    console.print("images for training, validation and test: {}, {}, {}".format(*counts))
    console.print(f"{len(every)} runs in {folder}, {len(pending)} of them to do", soft_wrap=True)
    try:
        perform_all(pending, config.ray)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on from here") from None
    show(folder)


def check(config: Config) -> None:
    """Raises ValueError for options that do not fit."""
    from benchmarks.compare.domains import kind_in_words

    check_positive(config, "epochs", "patients", "training_patients", "batch_size", "learning_rate")
    for option in ("methods", "seeds"):
        given = getattr(config, option)
        if not given or len(set(given)) < len(given):
            raise ValueError(f"--{option} {' '.join(map(str, given))}: expected some, each once")
    if config.ray is not None and len(config.ray) > 1:
        raise ValueError(f"--ray {' '.join(config.ray)}: expected one address, or none")
    if config.paper and (config.data is None or config.checkpoint is None):
        raise ValueError("--paper is on CAMUS and SAM: give --data and --checkpoint too")
    if config.trained_on is not None:
        kind_in_words(config.trained_on)
    for option in ("epochs", "patients", "training_patients", "learning_rate", "trained_on"):
        if config.paper and getattr(config, option) is not None:
            raise ValueError(
                f"--paper sets what --{option.replace('_', '-')} does; give one of the two"
            )


def setting_of(config: Config) -> "Setting":
    """What all runs share; synthetic echo is made if there is no data."""
    import adapterkit as ak
    from adapterkit.data.synthetic.phantom import write_phantom
    from adapterkit.promptable.loading import absolute
    from benchmarks.compare.setting import Setting

    if config.data is None:
        patients = config.patients or SMALL_PATIENTS
        data = write_phantom(Path(f"runs/phantom_{patients}_patients"), patients=patients)
        data_name = f"SYNTHETIC echo made by adapterkit, {patients} patients (no --data given)"
    else:
        data, data_name = config.data, str(config.data)
    default_epochs = SMALL_EPOCHS if config.checkpoint is None else PAPER_EPOCHS
    return Setting(
        data=data.resolve(),
        data_name=data_name,
        checkpoint=absolute(config.checkpoint),
        base_size=ak.view(Base(config.checkpoint, 0).load()).image_size,
        paper=config.paper,
        schedule=config.schedule,
        learning_rate=config.learning_rate,
        patients=config.patients,
        training_patients=config.training_patients,
        trained_on=config.trained_on,
        epochs=config.epochs or default_epochs,
        batch_size=config.batch_size,
        augment=config.augment or config.paper,
        mixed_precision=config.mixed_precision,
        activation_checkpointing=config.activation_checkpointing,
    )


def perform_all(pending: "Sequence[Run]", ray: tuple[str, ...] | None) -> None:
    """Perform the runs, saying how far it is and how long it takes."""
    from benchmarks.compare import engines
    from benchmarks.compare.runs import fail, is_finished, run_folder

    start = time.monotonic()
    if ray is None:
        performed = engines.on_this_machine(pending)
    else:
        performed = engines.on_ray(pending, next(iter(ray), None))
    for done, ((folder, name, seed), died) in enumerate(performed, start=1):
        own = run_folder(folder, name, seed)
        if died and not is_finished(folder, name, seed) and not (own / "error.txt").exists():
            fail(own, died)
        minutes = (time.monotonic() - start) / 60
        remain = minutes / done * (len(pending) - done)
        state = "finished" if is_finished(folder, name, seed) else f"FAILED, see {own}/error.txt"
        console.print(
            f"run {done} of {len(pending)}: {SYSTEMS[name].title}, seed {seed}, {state}; "
            f"{minutes:.1f} min so far, about {remain:.0f} min remain",
            soft_wrap=True,
        )


def show(folder: Path) -> None:
    """Write tables and figures of the runs in a folder, and print the tables."""
    from adapterkit.training.run_folder import write_text
    from benchmarks.compare.figures import draw_figures
    from benchmarks.compare.results import read_results, write_csv
    from benchmarks.compare.setting import read_setting
    from benchmarks.compare.tables import report

    setting = read_setting(folder)
    results = read_results(folder, setting)
    if not results:
        raise ValueError(f"{folder} holds no run yet; leave out --table")
    text = report(setting, results)
    write_text(folder / "tables.md", text)
    write_csv(folder / "results.csv", results)
    drawn = draw_figures(folder, results)
    console.print(text, markup=False, soft_wrap=True)
    names = ["tables.md", "results.csv", *(path.name for path in drawn)]
    console.print(f"in {folder}: {', '.join(names)}", soft_wrap=True)


def last_comparison() -> Path:
    """The folder of the comparison that was begun last.

    Raises:
        ValueError: there is none.
    """
    found = sorted(RUNS.glob("*/comparison.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ValueError(f"--table: there is no comparison in {RUNS}; give its folder with --out")
    return found[-1].parent


if __name__ == "__main__":
    run(main, Config)
