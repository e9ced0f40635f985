"""What the runs of a comparison came to, and which differences between systems are real."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import wilcoxon
from statsmodels.stats.multitest import multipletests

from adapterkit.evaluation.evaluation import Evaluation
from adapterkit.system.files import atomic_write
from benchmarks.compare.runs import run_folder
from benchmarks.compare.setting import REPORTED_SIZE, Setting
from benchmarks.compare.systems import SYSTEMS

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Finished:
    """A finished run: its measures of the test images, in pixels of the reported size."""

    seed: int
    evaluation: Evaluation
    result: Mapping[str, Any]

    @property
    def validation_dice(self) -> float | None:
        """The best of an epoch; None where nothing was trained."""
        return max((each["validation_dice"] for each in self.result["history"]), default=None)


@dataclass(frozen=True)
class SystemResults:
    """All runs of a system.

    Attributes:
        name: its key in `SYSTEMS`.
        finished: in the order of their seeds.
        failed: the error of each seed whose run failed.
        unfinished: the seeds of runs that were begun, and neither finished nor failed.
    """

    name: str
    finished: Sequence[Finished]
    failed: Mapping[int, str]
    unfinished: Sequence[int]

    @property
    def title(self) -> str:
        return SYSTEMS[self.name].title

    def over_seeds(self, metric: str, structure: str = "mean") -> list[float]:
        """The mean of a metric over the test images, for each finished seed."""
        summaries = [each.evaluation.summary()[structure] for each in self.finished]
        return [each[metric]["mean"] for each in summaries if metric in each]

    def cost(self, *path: str) -> list[float]:
        """A number of result.json, for each finished seed that has it."""
        found = []
        for each in self.finished:
            value: Any = each.result
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is not None:
                found.append(value)
        return found


def read_results(comparison: Path, setting: Setting) -> list[SystemResults]:
    """All runs in the folder of a comparison, in the order of `SYSTEMS`."""
    found = []
    for name in SYSTEMS:
        folders = (comparison / name).glob("seed_*")
        seeds = sorted(int(folder.name.removeprefix("seed_")) for folder in folders)
        if not seeds:
            continue
        finished, failed, unfinished = [], {}, []
        for seed in seeds:
            folder = run_folder(comparison, name, seed)
            if (folder / "result.json").exists():
                evaluation = Evaluation.read_csv(folder / "per_image.csv")
                evaluation = evaluation.in_pixels_of(REPORTED_SIZE, setting.image_size)
                result = json.loads((folder / "result.json").read_text())
                finished.append(Finished(seed, evaluation, result))
            elif (folder / "error.txt").exists():
                failed[seed] = (folder / "error.txt").read_text().rstrip().splitlines()[-1]
            else:
                unfinished.append(seed)
        found.append(SystemResults(name, finished, failed, unfinished))
    return found


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Over seeds; of one there is no standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return statistics.fmean(values), deviation


_RESULT_COLUMNS = (
    "trained_parameters",
    "file_bytes",
    "flops",
    "seconds_per_image",
    "training_seconds",
)


def write_csv(path: Path, results: Sequence[SystemResults]) -> None:
    """One row per run and structure, and one for each run that is not finished.

    Metrics are means over the test images, Dice and IoU in [0, 1].
    """
    metrics = list(
        dict.fromkeys(m for each in results for run in each.finished for m in run.evaluation.values)
    )
    heads = ["system", "seed", "status", "structure", *metrics, "validation_dice"]
    heads += [*_RESULT_COLUMNS, "peak_memory_bytes", "peak_gpu_memory_bytes", "machine", "error"]
    rows: list[dict[str, Any]] = []
    for each in results:
        for run in each.finished:
            memory = run.result["peak_memory_bytes"]
            shared = {
                "system": each.name,
                "seed": run.seed,
                "status": "finished",
                "validation_dice": run.validation_dice,
                **{column: run.result.get(column) for column in _RESULT_COLUMNS},
                "peak_memory_bytes": memory["process"],
                "peak_gpu_memory_bytes": memory.get("GPU"),
                "machine": run.result["machine"],
            }
            for structure, values in run.evaluation.summary().items():
                means = {metric: f"{value['mean']:.6g}" for metric, value in values.items()}
                rows.append({**shared, "structure": structure, **means})
        for seed, error in each.failed.items():
            rows.append({"system": each.name, "seed": seed, "status": "failed", "error": error})
        for seed in each.unfinished:
            rows.append({"system": each.name, "seed": seed, "status": "not finished"})
    with atomic_write(path) as temporary:
        pd.DataFrame(rows, columns=heads, dtype=object).to_csv(temporary, index=False)


# Which differences are real


@dataclass(frozen=True)
class Difference:
    """A system's Dice less the reference's, over the test patients.

    Attributes:
        system: its results.
        patients: how many.
        mean: of the differences; each patient counts once, with the mean of their images,
            structures and the seeds that both systems have finished.
        p: of Wilcoxon's signed-rank test, two-sided.
        adjusted_p: by Holm's method, for all differences from the reference together.
    """

    system: SystemResults
    patients: int
    mean: float
    p: float
    adjusted_p: float

    @property
    def is_real(self) -> bool:
        return self.adjusted_p < SIGNIFICANCE


def differences(results: Sequence[SystemResults], reference: SystemResults) -> list[Difference]:
    """Each other system with finished runs of the same seeds, against the reference."""
    found = []
    for each in results:
        seeds = {run.seed for run in each.finished} & {run.seed for run in reference.finished}
        if each.name != reference.name and seeds:
            difference = _dice_of_patients(each, seeds) - _dice_of_patients(reference, seeds)
            found.append((each, difference, paired_p(difference)))
    if not found:
        return []
    adjusted: Any = multipletests([p for *_, p in found], method="holm")[1]
    return [
        Difference(each, len(difference), float(difference.mean()), p, float(holms))
        for (each, difference, p), holms in zip(found, adjusted, strict=True)
    ]


def _dice_of_patients(system: SystemResults, seeds: set[int]) -> Float[np.ndarray, "patients"]:
    """The mean Dice of each test patient, in the order of their names."""
    of_seeds = [
        run.evaluation.means_of("patient", "dice").mean(dim=1).numpy()
        for run in system.finished
        if run.seed in seeds
    ]
    return np.mean(of_seeds, axis=0)


def paired_p(difference: Float[np.ndarray, "n"]) -> float:
    """Of Wilcoxon's signed-rank test, two-sided; 1 where nothing differs."""
    if not difference.any():
        return 1.0
    result: Any = wilcoxon(difference)  # Whose class scipy makes on the fly.
    return float(result.pvalue)


def smallest_p(count: int) -> float:
    """The least that the test can give of so many patients: all differences of one sign."""
    return 2.0 ** (1 - count)
