"""One run: a system, trained and evaluated with one seed, in a folder of its own.

comparison/samus/seed_0/
    weights.safetensors           what was trained, at the best validation Dice
    per_image.csv                 every metric of every test image and structure
    cases.safetensors             the masks of a few test images, for the figures
    result.json                   what it cost; written last, so that it tells a finished run
    training_state.safetensors    where an interrupted run goes on from
    error.txt                     why a run failed
"""

import json
import os
import platform
import shutil
import statistics
import sys
import time
import traceback
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset
from torch.utils.flop_counter import FlopCounterMode

from adapterkit.data.collections.camus import PHASES, VIEWS, CamusDataset
from adapterkit.evaluation.evaluation import evaluate, predict
from adapterkit.evaluation.tables import peak_memory
from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.protocol import Promptable
from adapterkit.system.allocator import keep_freed_memory
from adapterkit.system.files import remove_half_written, save_tensors
from adapterkit.training.loop import make_accelerator, train
from adapterkit.training.run_folder import write_json, write_text
from adapterkit.training.state import Epoch
from benchmarks.compare.schedules import settings_of
from benchmarks.compare.setting import data_of, read_setting
from benchmarks.compare.systems import SYSTEMS, System


def run_folder(comparison: Path, system: str, seed: int) -> Path:
    return comparison / system / f"seed_{seed}"


def is_finished(comparison: Path, system: str, seed: int) -> bool:
    return (run_folder(comparison, system, seed) / "result.json").exists()


def perform(comparison: Path, system: str, seed: int) -> None:
    """Train and evaluate a system, or go on where it was interrupted.

    An error is written to error.txt and not raised, so that other runs go on.
    """
    folder = run_folder(comparison, system, seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.txt").unlink(missing_ok=True)
    remove_half_written(folder)
    try:
        keep_freed_memory()
        _perform(comparison, folder, system, seed)
    except Exception:
        fail(folder, traceback.format_exc())
    except KeyboardInterrupt:
        sys.exit(130)


def fail(folder: Path, error: str) -> None:
    """Note why the run in a folder failed; the last line is what the tables show."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "error.txt", error.rstrip() + "\n")


def _perform(comparison: Path, folder: Path, name: str, seed: int) -> None:
    setting, system = read_setting(comparison), SYSTEMS[name]
    accelerator = make_accelerator(setting.mixed_precision)
    sets = data_of(setting, seed)
    torch.manual_seed(seed)
    model: Any = system.build(setting.base, len(sets.test.structures)).to(accelerator.device)
    weights, state = folder / "weights.safetensors", folder / "training_state.safetensors"
    result: dict[str, Any] = {
        "patients": {part: len(members) for part, members in asdict(sets.split).items()},
        "images": {
            "train": len(sets.training),
            "validation": len(sets.validation),
            "test": len(sets.test),
        },
        "trained_parameters": 0,
        "file_bytes": 0,
        "history": [],
    }

    if system.is_trained:
        settings = settings_of(
            name,
            setting.schedule,
            setting.base,
            epochs=setting.epochs,
            batch_size=setting.batch_size,
            learning_rate=setting.learning_rate,
            activation_checkpointing=setting.activation_checkpointing,
            seed=seed,
        )
        trained = [each.numel() for each in model.parameters() if each.requires_grad]
        embeddings = folder / "embeddings"

        def save(epoch: Epoch) -> None:
            notes = {"data": setting.data_name, "seed": seed, **asdict(epoch)}
            system.save(model, weights, notes)

        start = time.monotonic()
        history = train(
            model,
            sets.training,
            sets.validation,
            settings,
            accelerator=accelerator,
            on_improvement=save,
            state_file=state,
            # Augmented images are new in every epoch; keeping their embeddings would gain nothing.
            embeddings=None if setting.augment else embeddings,
        )
        system.load(model, weights)
        model.to(accelerator.device)
        result |= {
            "settings": asdict(settings),
            "trained_parameters": sum(trained),
            "file_bytes": weights.stat().st_size,
            "history": [asdict(epoch) for epoch in history],
            # Of this process; a run that was interrupted took longer in all.
            "training_seconds": time.monotonic() - start,
        }
        shutil.rmtree(embeddings, ignore_errors=True)

    evaluation = evaluate(
        model, sets.test, seed=seed, points=system.points, batch_size=setting.batch_size
    )
    evaluation.write_csv(folder / "per_image.csv")
    _save_cases(folder / "cases.safetensors", system, model, sets.test, seed)
    result |= _cost(model, sets.test)
    result |= {"peak_memory_bytes": peak_memory(), "machine": _machine()}
    # Last, because this file tells that the run is finished.
    write_json(folder / "result.json", result)
    state.unlink(missing_ok=True)


def case_indices(test: CamusDataset) -> list[int]:
    """The images of the figures, one for each view and phase, of different patients if possible.

    They are chosen before there is any result.
    """
    chosen = []
    for number, kind in enumerate(product(VIEWS, PHASES)):
        of_kind = [i for i, each in enumerate(test.records) if (each.view, each.phase) == kind]
        if of_kind:
            chosen.append(of_kind[number % len(of_kind)])
    return chosen


def _save_cases(
    path: Path, system: System, model: Promptable, test: CamusDataset, seed: int
) -> None:
    """Write image, reference, prediction and points of the figures' images.

    Where the second point is chosen by entropy, also the probabilities that the first one gave.
    """
    chosen = Subset(test, case_indices(test))
    found = list(predict(model, chosen, seed=seed, points=system.points, batch_size=1))
    tensors = {
        "image": torch.stack([chosen[i]["image"][0] for i in range(len(chosen))]).to(torch.uint8),
        "reference": torch.cat([each.reference for each in found]),
        "predicted": torch.cat([each.predicted for each in found]),
        "points": torch.cat([each.points for each in found]),
    }
    if system.points == "2-entropy":
        # The first points of all strategies are the same.
        first = predict(model, chosen, seed=seed, points="1", batch_size=1)
        tensors["probability"] = torch.cat([each.logits.sigmoid() for each in first]).half()
    names = [name for each in found for name in each.names]
    shown = {"names": names, "structures": test.structures}
    save_tensors(path, tensors, {"cases": json.dumps(shown)})


def _cost(model: Promptable, test: CamusDataset) -> dict[str, float]:
    """What it takes to segment all structures of one image; `model` is not trained any more."""
    # FlopCounterMode stumbles over parameters without a graph that could have one.
    model.requires_grad_(False)
    device = next(model.parameters()).device
    sample = test[0]
    images, masks = sample["image"][None].to(device), sample["masks"][None].bool()
    # Where the points are makes no difference to the cost.
    points = torch.full((1, masks.shape[1], 1, 2), images.shape[-1] / 2, device=device)
    labels = torch.ones(points.shape[:3], dtype=torch.long, device=device)
    prompts = Prompts(points, labels)

    def segment() -> Tensor:
        with torch.no_grad():
            return model(images, prompts).logits().cpu()

    with FlopCounterMode(display=False) as counter:
        segment()
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        segment()
        seconds.append(time.perf_counter() - start)
    return {
        "flops": counter.get_total_flops(),
        "seconds_per_image": statistics.median(seconds[1:]),
    }


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    cores = f"{os.cpu_count()} {platform.machine()} cores"
    return f"{cores}, {threads} thread{'s' * (threads > 1)}"
