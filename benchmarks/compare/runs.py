"""One run: a system, trained and evaluated with one seed, an experiment in a folder of its own.

comparison/samus/seed_0/
    metrics.json, per_image.csv, ...    what every experiment leaves
    cases.safetensors                   the masks of a few test images, for the figures; written
                                        last, so that it tells a finished run
    error.txt                           why a run failed
"""

import json
import sys
import traceback
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from torch.utils.data import Subset

from adapterkit.data.augmentation import SamusAugmentation
from adapterkit.data.dataset import SegmentationDataset
from adapterkit.evaluation.evaluation import predict
from adapterkit.promptable.protocol import Promptable
from adapterkit.system.files import save_tensors
from adapterkit.training import runner
from adapterkit.training.accelerator import make_accelerator
from adapterkit.training.experiment import Experiment
from adapterkit.training.run_folder import write_text
from benchmarks.compare.schedules import settings_of
from benchmarks.compare.setting import Setting, data_of, read_setting
from benchmarks.compare.subjects import subject_of
from benchmarks.compare.systems import SYSTEMS, Prompted

_CASES = 4
"""Images in the figures."""


def run_folder(comparison: Path, system: str, seed: int) -> Path:
    return comparison / system / f"seed_{seed}"


def is_finished(comparison: Path, system: str, seed: int) -> bool:
    return (run_folder(comparison, system, seed) / "cases.safetensors").exists()


def perform(comparison: Path, system: str, seed: int) -> None:
    """Train and evaluate a system, or go on where it was interrupted.

    An error is written to error.txt and not raised, so that other runs go on.
    """
    folder = run_folder(comparison, system, seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.txt").unlink(missing_ok=True)
    try:
        setting = read_setting(comparison)
        planned = experiment_of(setting, system, seed)
        accelerator = make_accelerator(setting.mixed_precision)
        run = runner.perform(planned, lambda: folder, accelerator)
        assert run is not None  # In a process of its own.
        save_cases(folder / "cases.safetensors", run.model, planned)
    except Exception:
        fail(folder, traceback.format_exc())
    except KeyboardInterrupt:
        sys.exit(130)


def fail(folder: Path, error: str) -> None:
    """Note why the run in a folder failed; the last line is what the tables show."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "error.txt", error.rstrip() + "\n")


def experiment_of(setting: Setting, name: str, seed: int) -> Experiment:
    """What a system's run with a seed is.

    Raises:
        DataError: the data are not there any more.
        ValueError: the method does not fit the base.
    """
    system = SYSTEMS[name]
    augmented = setting.augment or (isinstance(system, Prompted) and system.augmented)
    collection, split = data_of(setting)
    return Experiment(
        subject=subject_of(system, setting.base, list(collection.structures.values())),
        collection=collection,
        data=setting.data_name,
        split=split,
        settings=settings_of(
            name,
            setting.schedule,
            setting.base,
            epochs=setting.epochs,
            batch_size=setting.batch_size,
            learning_rate=setting.learning_rate,
            activation_checkpointing=setting.activation_checkpointing,
            images=len(collection.of_groups(split.train)),
            seed=seed,
        ),
        image_size=setting.image_size,
        augmentation=SamusAugmentation(setting.image_size) if augmented else None,
        prompts=setting.prompts_of(system),
    )


def case_indices(test: SegmentationDataset, reported: Sequence[str]) -> list[int]:
    """The images of the figures, of each combination of what the data report (view and phase, say)
    one, of different groups if possible.

    They are chosen before there is any result.
    """
    kinds = [
        tuple(record.attributes[attribute] for attribute in reported) for record in test.records
    ]
    values = [sorted(set(of)) for of in zip(*kinds, strict=True)]
    chosen = []
    for number, kind in enumerate(product(*values)):
        of_kind = [i for i, each in enumerate(kinds) if each == kind]
        if of_kind:
            chosen.append(of_kind[number % len(of_kind)])
    if len(chosen) < _CASES:
        chosen += [i for i in range(len(test)) if i not in chosen]
    return chosen[:_CASES]


def save_cases(path: Path, model: Promptable, planned: Experiment) -> None:
    """Write image, reference, prediction and points of the figures' images.

    Where the second point is chosen by entropy, also the probabilities that the first one gave.
    """
    test, seed, prompts = planned.dataset("test"), planned.settings.seed, planned.prompts[0]
    chosen = Subset(test, case_indices(test, planned.collection.reported))
    found = list(predict(model, chosen, seed=seed, points=prompts, batch_size=1))
    tensors = {
        "image": torch.cat([each.images[:, 0] for each in found]).to(torch.uint8),
        "reference": torch.cat([each.reference for each in found]),
        "predicted": torch.cat([each.predicted for each in found]),
        "points": torch.cat([each.points for each in found]),
    }
    if prompts == "2-entropy":
        # The first points of all strategies are the same.
        first = predict(model, chosen, seed=seed, points="1", batch_size=1)
        tensors["probability"] = torch.cat([each.logits.sigmoid() for each in first]).half()
    names = [name for each in found for name in each.names]
    shown = {"names": names, "structures": test.structures}
    save_tensors(path, tensors, {"cases": json.dumps(shown)})
