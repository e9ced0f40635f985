"""An experiment for each fold of a collection, and one table over them.

What it leaves in the folder:

    fold_1, fold_2, ...      the folder of a run for each fold
    table.md                 mean and spread over the folds, and each fold
    metrics.json             the same, with the split of each fold; written last
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from rich.console import Console

from adapterkit.data.splits import Split
from adapterkit.evaluation.metrics import Statistics
from adapterkit.evaluation.tables import markdown, markdown_table
from adapterkit.system.files import remove_half_written
from adapterkit.training.experiment import Experiment
from adapterkit.training.run_folder import subfolder, write_json, write_text
from adapterkit.training.runner import perform


@dataclass(frozen=True)
class CrossValidation:
    """Finished experiments of all folds.

    Attributes:
        folder: where the results are.
        adapters: the file of what was trained in each fold.
        metrics: what metrics.json holds: "test", by model, as mean and sample standard deviation
            of the folds' means; and "folds", with the split and the means of each.
    """

    folder: Path
    adapters: tuple[Path, ...]
    metrics: Mapping[str, Any]


def cross_validate(
    splits: Sequence[Split],
    experiment_of: Callable[[Split], Experiment],
    open_folder: Callable[[Experiment], Path],
    make_accelerator: Callable[[], Accelerator],
    resumed: Path | None = None,
    say: Console | None = None,
) -> CrossValidation | None:
    """Train and measure an experiment for each split, or go on where it was interrupted.

    Args:
        splits: of the folds.
        experiment_of: makes the experiment of a split, with a base of its own.
        open_folder: gives the folder for the results, as in `perform`.
        make_accelerator: makes one for each fold.
        resumed: the folder of an interrupted run, whose finished folds are kept.
        say: where the results are told; None: nowhere.

    Returns:
        The results; None in processes other than the main one.

    Raises:
        ValueError: as `perform`, also FloatingPointError and KeyboardInterrupt.
    """
    console = say or Console(quiet=True)
    root = resumed
    for number, split in enumerate(splits, start=1):
        if root is not None and (root / f"fold_{number}" / "metrics.json").exists():
            continue
        console.print(f"fold {number} of {len(splits)}")
        experiment = experiment_of(split)

        def open_fold(number: int = number, experiment: Experiment = experiment) -> Path:
            nonlocal root
            root = root or open_folder(experiment)
            return subfolder(root, f"fold_{number}")

        accelerator = make_accelerator()
        perform(experiment, open_fold, accelerator, console)
        accelerator.free_memory()
    if root is None or not PartialState().is_main_process:
        return None
    remove_half_written(root)
    metrics = _metrics(root, len(splits))
    write_text(root / "table.md", _table(metrics))
    write_json(root / "metrics.json", metrics)
    console.print(_over_folds(metrics, ["dice", "hausdorff95_px", "hausdorff95_mm"]),
                  markup=False, soft_wrap=True)  # fmt: skip
    console.print(f"mean ± standard deviation over {len(splits)} folds, in {root}", soft_wrap=True)
    adapters = sorted(root.glob("fold_*/*.safetensors"), key=lambda path: int(path.parent.name[5:]))
    return CrossValidation(root, tuple(adapters), metrics)


def _metrics(root: Path, count: int) -> dict[str, Any]:
    """Of the folders of the folds."""
    folders = [root / f"fold_{number}" for number in range(1, count + 1)]
    found = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    kind = "patients" if "patients" in found[0] else "groups"
    folds = [
        {
            "folder": folder.name,
            kind: each[kind],
            "test": {model: values["images"] for model, values in each["test"].items()},
        }
        for folder, each in zip(folders, found, strict=True)
    ]
    return {
        "base": found[0]["base"],
        "data": found[0]["data"],
        "test": {
            model: {"folds": _spread([fold["test"][model] for fold in folds])}
            for model in folds[0]["test"]
        },
        "folds": folds,
    }


def _spread(of_folds: Sequence[Statistics]) -> Statistics:
    """Mean and sample standard deviation of the folds' means, of the metrics that all have."""
    found: Statistics = {}
    for structure, metrics in of_folds[0].items():
        found[structure] = {}
        for metric in metrics:
            if all(metric in fold[structure] for fold in of_folds):
                means = [fold[structure][metric]["mean"] for fold in of_folds]
                found[structure][metric] = {
                    "mean": statistics.mean(means),
                    "std": statistics.stdev(means),
                }
    return found


def _over_folds(metrics: Mapping[str, Any], shown: Sequence[str] | None = None) -> str:
    summaries = {model: each["folds"] for model, each in metrics["test"].items()}
    return markdown_table(summaries, shown) if shown else markdown_table(summaries)


def _table(metrics: Mapping[str, Any]) -> str:
    folds = metrics["folds"]
    structures = list(next(iter(folds[0]["test"].values())))
    rows = [
        [fold["folder"], model, *(f"{100 * of[name]['dice']['mean']:.2f}" for name in structures)]
        for fold in folds
        for model, of in fold["test"].items()
    ]
    return (
        f"Base: {metrics['base']}. Data: {metrics['data']}. {len(folds)} folds; each is tested on "
        "what it was not trained on. Mean ± standard deviation over the folds' means.\n\n"
        f"{_over_folds(metrics)}\n\n## Dice (%) of each fold\n\n"
        f"{markdown(['fold', 'model', *structures], rows)}\n"
    )
