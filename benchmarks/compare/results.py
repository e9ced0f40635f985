"""What the runs of a comparison came to, and which differences between systems are real."""

import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import wilcoxon
from statsmodels.stats.multitest import multipletests

from adapterkit.evaluation.evaluation import Evaluation
from adapterkit.promptable.strategies import PROMPTS_IN_WORDS, PromptStrategy
from adapterkit.system.files import atomic_write
from adapterkit.training.outcome import per_image_file
from benchmarks.compare.runs import is_finished, run_folder
from benchmarks.compare.setting import REPORTED_SIZE, Setting
from benchmarks.compare.systems import SYSTEMS

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Finished:
    """A finished run: its measures of the test images, in pixels of the reported size.

    Attributes:
        seed: of the run.
        evaluation: with one kind of prompts.
        metrics: what its metrics.json holds.
    """

    seed: int
    evaluation: Evaluation
    metrics: Mapping[str, Any]

    @property
    def validation_dice(self) -> float | None:
        """The best of an epoch; None where nothing was trained."""
        return max((each["validation_dice"] for each in self.metrics["history"]), default=None)


@dataclass(frozen=True)
class SystemResults:
    """All runs of a system, tested with one kind of prompts.

    Attributes:
        name: its key in `SYSTEMS`.
        prompts: which.
        finished: in the order of their seeds.
        failed: the error of each seed whose run failed.
        unfinished: the seeds of runs that were begun, and neither finished nor failed.
    """

    name: str
    prompts: PromptStrategy
    finished: Sequence[Finished]
    failed: Mapping[int, str]
    unfinished: Sequence[int]

    @property
    def title(self) -> str:
        return SYSTEMS[self.name].title

    @property
    def full_title(self) -> str:
        """With the prompts, where the system is tested with several kinds."""
        several = len(SYSTEMS[self.name].tested_with) > 1
        return f"{self.title}, {PROMPTS_IN_WORDS[self.prompts]}" if several else self.title

    @property
    def is_main(self) -> bool:
        """Whether these are the first prompts that it is tested with."""
        return self.prompts == SYSTEMS[self.name].tested_with[0]

    @property
    def structures(self) -> Sequence[str]:
        """Those of the data."""
        return self.finished[0].evaluation.structures if self.finished else ()

    def over_seeds(self, metric: str, structure: str = "mean") -> list[float]:
        """The mean of a metric over the test images, for each finished seed."""
        summaries = [each.evaluation.summary()[structure] for each in self.finished]
        return [each[metric]["mean"] for each in summaries if metric in each]

    def cost(self, *path: str) -> list[float]:
        """A number of metrics.json, for each finished seed that has it."""
        found = []
        for each in self.finished:
            value: Any = each.metrics
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is not None:
                found.append(value)
        return found


def of_kind(each: SystemResults, attribute: str, values: Collection[str]) -> SystemResults:
    """The same, of the test images alone whose attribute has one of these values."""
    return replace(
        each,
        finished=[
            replace(run, evaluation=_where(run.evaluation, attribute, values))
            for run in each.finished
        ],
    )


def _where(evaluation: Evaluation, attribute: str, values: Collection[str]) -> Evaluation:
    kept = [i for i, of in enumerate(evaluation.attributes) if of[attribute] in values]
    return replace(
        evaluation,
        names=[evaluation.names[i] for i in kept],
        attributes=[evaluation.attributes[i] for i in kept],
        values={metric: value[kept] for metric, value in evaluation.values.items()},
    )


def kinds_of(results: Sequence[SystemResults], attribute: str) -> list[str]:
    """The values of an attribute of the test images, sorted."""
    return sorted(
        {
            of[attribute]
            for each in results
            for run in each.finished[:1]
            for of in run.evaluation.attributes
        }
    )


def read_results(comparison: Path, setting: Setting) -> list[SystemResults]:
    """All runs in the folder of a comparison, in the order of `SYSTEMS` and of their prompts."""
    found = []
    for name, system in SYSTEMS.items():
        folders = (comparison / name).glob("seed_*")
        seeds = sorted(int(folder.name.removeprefix("seed_")) for folder in folders)
        if not seeds:
            continue
        finished = [seed for seed in seeds if is_finished(comparison, name, seed)]
        errors = {
            seed: run_folder(comparison, name, seed) / "error.txt"
            for seed in seeds
            if seed not in finished
        }
        failed = {
            seed: path.read_text().rstrip().splitlines()[-1]
            for seed, path in errors.items()
            if path.exists()
        }
        unfinished = [seed for seed in errors if seed not in failed]
        tested_with = setting.prompts_of(system)
        for prompts in tested_with:
            runs = [
                _finished(run_folder(comparison, name, seed), seed, prompts, tested_with, setting)
                for seed in finished
            ]
            found.append(SystemResults(name, prompts, runs, failed, unfinished))
    return found


def _finished(
    folder: Path,
    seed: int,
    prompts: PromptStrategy,
    tested_with: Sequence[PromptStrategy],
    setting: Setting,
) -> Finished:
    evaluation = Evaluation.read_csv(folder / per_image_file(prompts, tested_with))
    evaluation = evaluation.in_pixels_of(REPORTED_SIZE, setting.image_size)
    return Finished(seed, evaluation, json.loads((folder / "metrics.json").read_text()))


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Over seeds; of one there is no standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return statistics.fmean(values), deviation


_COST_COLUMNS = ("trained_parameters", "file_bytes", "flops", "seconds_per_image")


def write_csv(path: Path, results: Sequence[SystemResults]) -> None:
    """One row per run, kind of prompts and structure, and one for each run that is not finished.

    Metrics are means over the test images, Dice and IoU in [0, 1].
    """
    metrics = list(
        dict.fromkeys(m for each in results for run in each.finished for m in run.evaluation.values)
    )
    heads = ["system", "prompts", "seed", "status", "structure", *metrics, "validation_dice"]
    heads += [*_COST_COLUMNS, "training_seconds", "peak_memory_bytes", "peak_gpu_memory_bytes"]
    heads += ["machine", "error"]
    rows: list[dict[str, Any]] = []
    for each in results:
        for run in each.finished:
            memory = run.metrics["peak_memory_bytes"]
            shared = {
                "system": each.name,
                "prompts": each.prompts,
                "seed": run.seed,
                "status": "finished",
                "validation_dice": run.validation_dice,
                **{column: run.metrics[column] for column in _COST_COLUMNS},
                "training_seconds": run.metrics["seconds"]["training"],
                "peak_memory_bytes": memory["process"],
                "peak_gpu_memory_bytes": memory.get("GPU"),
                "machine": run.metrics["machine"],
            }
            for structure, values in run.evaluation.summary().items():
                means = {metric: f"{value['mean']:.6g}" for metric, value in values.items()}
                rows.append({**shared, "structure": structure, **means})
        if not each.is_main:
            continue
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
        if each.full_title != reference.full_title and seeds:
            difference = _dice_of_groups(each, seeds) - _dice_of_groups(reference, seeds)
            found.append((each, difference, paired_p(difference)))
    if not found:
        return []
    adjusted: Any = multipletests([p for *_, p in found], method="holm")[1]
    return [
        Difference(each, len(difference), float(difference.mean()), p, float(holms))
        for (each, difference, p), holms in zip(found, adjusted, strict=True)
    ]


def _dice_of_groups(system: SystemResults, seeds: set[int]) -> Float[np.ndarray, "groups"]:
    """The mean Dice of each test patient, or other group, in the order of their names; of each
    image, where the data know no groups."""
    of_seeds = []
    for run in system.finished:
        if run.seed in seeds:
            found = run.evaluation
            kinds = [each for each in ("patient", "group") if each in found.attributes[0]]
            dice = found.means_of(kinds[0], "dice") if kinds else found.values["dice"]
            of_seeds.append(dice.mean(dim=1).numpy())
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
