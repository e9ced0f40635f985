"""What is left of an experiment in its folder: tables, figures, the report, metrics.json."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from adapterkit.data.dataset import SegmentationDataset
from adapterkit.evaluation.agreement_figure import agreement_figure
from adapterkit.evaluation.clicks import ClicksNeeded, clicks_table
from adapterkit.evaluation.cost import inference_cost
from adapterkit.evaluation.drawings import Drawing, draw_large
from adapterkit.evaluation.evaluation import Evaluation, Predictions
from adapterkit.evaluation.hearts import Hearts, heart_tables
from adapterkit.evaluation.plots import segmentation_figure, training_curves
from adapterkit.evaluation.report import Contents, write_report
from adapterkit.evaluation.tables import extreme_cases, markdown, markdown_table, summaries, tables
from adapterkit.promptable.protocol import Promptable
from adapterkit.promptable.strategies import PROMPTS_IN_WORDS, PromptStrategy
from adapterkit.system.files import atomic_write
from adapterkit.training.experiment import Experiment
from adapterkit.training.run_folder import write_json, write_text
from adapterkit.training.state import Epoch


def per_image_file(prompts: PromptStrategy, of: Sequence[PromptStrategy]) -> str:
    """The name of the file of the metrics of every image, of a run tested with some prompts."""
    return "per_image.csv" if prompts == of[0] else f"per_image_{prompts}.csv"


@dataclass(frozen=True)
class Outcome:
    """A trained model on its test images.

    Attributes:
        experiment: what it is of.
        model: as the best epoch left it.
        test: the images.
        of_prompts: its metrics, by what it was asked with; the first is the main one.
        of_base: those of the base as it comes, by what it is called; none where not measured.
        history: of the training; none where there was nothing to train.
        extremes: what was predicted for the images of `tables.extremes`, by index.
        drawings: a small one of each image.
        hearts: volumes and ejection fractions of the patients, by titles as of `evaluations`; none
            where the images are of no hearts.
        clicks: how many it needs; None where that was not measured.
    """

    experiment: Experiment
    model: Promptable
    test: SegmentationDataset
    of_prompts: Mapping[PromptStrategy, Evaluation]
    of_base: Mapping[str, Evaluation]
    history: Sequence[Epoch]
    extremes: Mapping[int, Predictions]
    drawings: Sequence[Drawing]
    hearts: Mapping[str, Hearts]
    clicks: ClicksNeeded | None = None

    @property
    def main(self) -> Evaluation:
        """With the first prompts."""
        return self.of_prompts[self.experiment.prompts[0]]

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """All, by their titles."""
        title = self.experiment.title_with
        own = {title(each): found for each, found in self.of_prompts.items()}
        return {**self.of_base, **own, **self.experiment.others}

    @property
    def reported(self) -> list[str]:
        """The attributes by whose values there are tables too."""
        return [a for a in self.experiment.collection.reported if a in self.main.attributes[0]]

    def metrics(self) -> dict[str, Any]:
        """What metrics.json holds, beside what the run itself took.

        Afterwards none of the model's parameters requires gradients.
        """
        experiment = self.experiment
        return {
            "base": experiment.subject.base,
            "data": experiment.data,
            experiment.groups_are: asdict(experiment.split),
            "test": {
                name: summaries(each, self.reported) for name, each in self.evaluations.items()
            },
            **(
                {"hearts": {t: each.summary() for t, each in self.hearts.items()}}
                if self.hearts
                else {}
            ),
            "history": [asdict(epoch) for epoch in self.history],
            "settings": asdict(experiment.settings),
            **({} if self.clicks is None else {"clicks_to_90_iou": self.clicks.summary()}),
            **inference_cost(self.model, self.test, experiment.prompts[0]),
        }

    def write(self, folder: Path, metrics: Mapping[str, Any]) -> None:
        """Write all files; metrics.json last, because it tells that the run is finished."""
        experiment, size = self.experiment, self.experiment.image_size
        for prompts, found in self.of_prompts.items():
            found.write_csv(folder / per_image_file(prompts, experiment.prompts))
        needed = "" if self.clicks is None else f"\n\n{clicks_table(self.clicks.summary())}"
        write_text(
            folder / "table.md",
            f"Base: {experiment.subject.base}. Data: {experiment.data}. Test: "
            f"{len(experiment.split.test)} {experiment.groups_are}, {len(self.test)} images. "
            f"Mean ± standard deviation over images; px are of {size}x{size}.\n\n"
            f"{tables(self.evaluations, self.reported)}{needed}\n{self._table_of_hearts()}",
        )
        self._write_hearts(folder)
        if self.history:
            training_curves(metrics["history"], folder / "curves.png")
        cases = extreme_cases(self.main, self.extremes)
        segmentation_figure(cases, folder / "segmentations.png")
        write_report(folder / "report.html", self._report(metrics))
        write_json(folder / "metrics.json", metrics)

    def _table_of_hearts(self) -> str:
        return "".join(
            f"\n## {title}\n\n{markdown(heads, rows)}\n"
            for title, heads, rows in heart_tables(self.hearts)
        )

    def _write_hearts(self, folder: Path) -> None:
        """The patients' values, and their agreement drawn; of the main prompts."""
        if not self.hearts:
            return
        main = self.hearts[self.experiment.title_with(self.experiment.prompts[0])]
        with atomic_write(folder / "patients.csv") as temporary:
            main.table().to_csv(temporary, index=False, float_format="%.6g")
        compared = main.comparisons()
        drawn = [compared[key] for key in ("ef", "edv_ml", "esv_ml") if key in compared]
        if drawn:
            agreement_figure(drawn, folder / "agreement.png")

    def tell(self, metrics: Mapping[str, Any], folder: Path, console: Console) -> None:
        """Say it on a console."""
        columns = ["dice", "hausdorff_px", "hausdorff95_px", "hausdorff_mm"]
        found = {name: each.summary() for name, each in self.evaluations.items()}
        console.print(markdown_table(found, columns), markup=False, soft_wrap=True)
        peak = max(metrics["peak_memory_bytes"].values())
        console.print(
            f"trained in {metrics['seconds']['training'] / 60:.1f} min, peak memory "
            f"{peak / 1e9:.1f} GB\nresults in {folder}",
            soft_wrap=True,
        )

    def _report(self, metrics: Mapping[str, Any]) -> Contents:
        experiment = self.experiment
        return Contents(
            title=f"{experiment.subject.title} on {experiment.data}",
            setting=_setting(experiment, metrics),
            evaluations=self.evaluations,
            main=self.main,
            history=metrics["history"],
            reported=self.reported,
            images=self.drawings,
            cases=draw_large(self.test, self.extremes),
            further=heart_tables(self.hearts),
        )


def _setting(experiment: Experiment, metrics: Mapping[str, Any]) -> dict[str, str]:
    """What was done and what it took, for a reader."""
    settings, collection = experiment.settings, experiment.collection
    split = {
        part: f"{len(members)} {experiment.groups_are}, {len(collection.of_groups(members))} images"
        for part, members in asdict(experiment.split).items()
    }
    augmentation = experiment.augmentation
    return {
        "base": experiment.subject.base,
        "data": f"{experiment.data} ({collection.format})",
        **split,
        "input": f"{experiment.image_size} x {experiment.image_size} pixels",
        "prompts in training": PROMPTS_IN_WORDS[settings.points],
        "prompts in the drawings": PROMPTS_IN_WORDS[experiment.prompts[0]],
        "epochs": f"{len(metrics['history'])} of {settings.epochs}",
        "batch": f"{settings.batch_size} images",
        "learning rate": f"{settings.learning_rate:g}, {settings.schedule}",
        "augmentation": "none" if augmentation is None else type(augmentation).__name__,
        "seed": str(settings.seed),
        "trained parameters": f"{metrics['trained_parameters']:,}",
        "training took": f"{metrics['seconds']['training'] / 60:.1f} min",
        "peak memory": f"{max(metrics['peak_memory_bytes'].values()) / 1e9:.1f} GB",
    }
