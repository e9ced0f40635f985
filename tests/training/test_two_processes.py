"""Two processes, started as a user starts them, train one adapter on disjoint images."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

import adapterkit as ak
from adapterkit.data.collections.camus import CamusDataset, find_frames
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.evaluation.evaluation import Evaluation, evaluate
from adapterkit.training.accelerator import make_accelerator
from adapterkit.training.loop import train
from adapterkit.training.settings import Settings
from tests.models import ECHO

ROOT = Path(__file__).parents[2]
# accelerate has no way of its own to start processes on one machine without GPUs.
LAUNCH = [
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
    "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
    "--main_process_port", "0",
]  # fmt: skip


class Noted(Dataset):
    """The samples of another data set, and which were asked for in which epoch."""

    def __init__(self, samples: CamusDataset):
        self.samples = samples
        self.visits: dict[int, list[int]] = {}

    def set_epoch(self, epoch: int) -> None:
        self.visits[epoch] = []

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        self.visits[max(self.visits)].append(index)
        return self.samples[index]


def process(folder: Path) -> None:
    """What each of the two does."""
    echo = CamusDataset(find_frames(folder / "echo"), image_size=64)
    accelerator = make_accelerator()
    rank = accelerator.process_index
    assert accelerator.num_processes == 2
    # Different initial weights, which the processes have to agree upon.
    torch.manual_seed(rank)
    sam = ak.build_sam(ECHO, seed=0)
    ak.inject(sam, [*ak.methods.parts_of("samus", image_size=64), ak.parts.Train("mask_decoder")])
    segmenter, noted = ak.Segmenter(sam), Noted(echo)
    history = train(
        segmenter,
        noted,
        echo,
        Settings(epochs=3, batch_size=2, learning_rate=1e-3, seed=0),
        accelerator=accelerator,
        on_improvement=lambda _: ak.save_adapter(sam, folder / "adapter.safetensors"),
    )
    ak.load_adapter(ak.eject(sam), folder / "adapter.safetensors")
    evaluate(segmenter, echo, seed=0).write_csv(folder / f"{rank}.csv")
    save_file(ak.Segmenter(sam).state_dict(), folder / f"{rank}.safetensors")
    noted_epochs = [noted.visits[epoch.epoch] for epoch in history]
    (folder / f"{rank}.json").write_text(json.dumps([[vars(e) for e in history], noted_epochs]))
    accelerator.end_training()


@pytest.mark.slow
def test_two_processes_train_one_adapter_on_disjoint_images(tmp_path: Path):
    data = write_phantom(tmp_path / "echo", patients=2, image_size=64)
    done = subprocess.run(
        [*LAUNCH, "-m", "tests.training.test_two_processes", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (history, first), (other_history, second) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)
    )
    assert history == other_history
    for mine, others in zip(first, second, strict=True):
        assert len(mine) == len(others) == 4
        assert sorted(mine + others) == list(range(8))
    assert first[0] != first[1]

    weights, other_weights = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(value, other_weights[name]) for name, value in weights.items())
    assert (tmp_path / "0.csv").read_text() == (tmp_path / "1.csv").read_text()

    # In one process the one adapter does the same.
    sam = ak.load_adapter(ak.build_sam(ECHO, seed=0), tmp_path / "adapter.safetensors")
    echo = CamusDataset(find_frames(data), image_size=64)
    alone, together = (
        evaluate(ak.Segmenter(sam), echo, seed=0),
        Evaluation.read_csv(tmp_path / "0.csv"),
    )
    assert list(alone.names) == together.names
    for metric, value in alone.values.items():
        torch.testing.assert_close(value, together.values[metric])


if __name__ == "__main__":
    process(Path(sys.argv[1]))
