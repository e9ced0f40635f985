"""Files that adapterkit 0.1.0 wrote still load, and give what was recorded then.

`tests/fixtures/0.1.0` holds a small Sam, an adapter of many parts and outputs with it, a training
state after the third of six steps and the losses of all six, a finished run of the CAMUS recipe
(with a CNN branch of 4 channels instead of 64, to be small), and a run that was killed before its
first training state was written.
"""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

import adapterkit as ak
from adapterkit.data.collections.camus import CamusDataset, find_frames
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.evaluation.evaluation import Evaluation, evaluate
from adapterkit.parts import CNNBranch, FeatureAdapter, LoRA, Normalise, Resize
from adapterkit.training.accelerator import make_accelerator
from adapterkit.training.loop import train
from adapterkit.training.settings import Settings
from recipes.samus_camus import Config, main

pytestmark = pytest.mark.usefixtures("blank_figures")

FILES = Path(__file__).parent / "fixtures" / "0.1.0"


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(FILES / "expected.safetensors")


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the runs were trained on."""
    return write_phantom(tmp_path_factory.mktemp("data") / "echo", patients=4, image_size=64)


def images(count: int) -> Tensor:
    n = torch.arange(count * 3 * 64 * 64, dtype=torch.float64)
    return ((n.mul(0.37).sin() + 1) * 127.5).float().view(count, 3, 64, 64)


class Squares(Dataset):
    """Four images of a bright square each."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
        mask[:, 8 + 4 * index : 40 + 4 * index, 10:50] = 1
        image = images(4)[index] * 0.3 + mask * 120.0
        return {"image": image, "masks": mask, "name": f"square {index}", "index": index}


def test_an_adapter_file(expected: dict[str, Tensor]):
    sam = ak.load_sam(FILES / "base.safetensors")
    ak.load_adapter(sam, FILES / "adapter.safetensors")
    points, labels = torch.tensor([[[[20.0, 30.0]]], [[[40.0, 33.0]]]]), torch.ones(2, 1, 1).long()
    with torch.no_grad():
        embedding = sam.image_encoder(images(2))
        result = ak.Segmenter(sam)(images(2), ak.Prompts(points, labels))
    # Other machines and versions of PyTorch add in another order.
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(embedding[:, :, ::2, ::2], expected["adapter.embedding"], **close)
    logits = result.low_res_logits[..., ::2, ::2]
    torch.testing.assert_close(logits, expected["adapter.low_res_logits"], **close)


def test_its_header():
    header = ak.inspect_adapter(FILES / "adapter.safetensors")
    assert [type(part).__name__ for part in header.parts] == [
        "Resize", "Normalise", "PositionAdapter", "LoRA", "FeatureAdapter", "Peft", "CNNBranch",
        "Train", "Train",
    ]  # fmt: skip
    assert (header.image_size, header.classes) == (64, ("left ventricle",))
    assert header.training == {"data": "two images by formula", "steps": 2}


def test_a_training_state(tmp_path: Path, expected: dict[str, Tensor]):
    sam = ak.load_sam(FILES / "base.safetensors")
    torch.manual_seed(0)
    parts = [Resize(64, 8), Normalise(), LoRA(2), FeatureAdapter(at="mlp")]
    ak.inject(sam, [*parts, CNNBranch(stem_channels=2)])
    state = shutil.copy(FILES / "training_state.safetensors", tmp_path)
    history = train(
        ak.Segmenter(sam),
        Squares(),
        Squares(),
        Settings(epochs=3, batch_size=2, learning_rate=1e-3),
        accelerator=make_accelerator(),
        on_improvement=lambda _: None,
        state_file=Path(state),
    )
    losses = torch.tensor([epoch.loss for epoch in history])
    torch.testing.assert_close(losses, expected["training.losses"], rtol=1e-4, atol=0)
    dices = torch.tensor([epoch.validation_dice for epoch in history])
    torch.testing.assert_close(dices, expected["training.dices"], rtol=0, atol=1e-2)


def test_the_adapter_and_the_scores_of_a_finished_run(echo: Path):
    sam = ak.load_sam(FILES / "base.safetensors")
    ak.load_adapter(sam, FILES / "finished" / "adapter.safetensors")
    patients = json.loads((FILES / "finished" / "metrics.json").read_text())["patients"]["test"]
    frames = [frame for frame in find_frames(echo) if frame.patient in patients]
    now = evaluate(ak.Segmenter(sam), CamusDataset(frames, 64), seed=0)
    then = Evaluation.read_csv(FILES / "finished" / "per_image.csv")
    assert list(now.structures) == list(then.structures)
    for structure, values in now.summary().items():
        assert values["dice"] == pytest.approx(then.summary()[structure]["dice"], abs=1e-2)


def resume(folder: Path, echo: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    places = {"data": str(echo), "checkpoint": str(FILES / "base.safetensors")}
    (folder / "config.json").write_text(json.dumps({**config, **places}))
    AcceleratorState._reset_state()
    with contextlib.chdir(folder.parent):
        main(Config(resume=folder))


def test_an_interrupted_run_goes_on(tmp_path: Path, echo: Path):
    folder = shutil.copytree(FILES / "interrupted", tmp_path / "run")
    resume(folder, echo)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert len(metrics["history"]) == 2
    assert metrics["patients"]["test"] == ["patient0004"]
    before = json.loads((FILES / "finished" / "metrics.json").read_text())
    now, then = (each["test"]["zero-shot"]["images"] for each in (metrics, before))
    assert now.keys() == then.keys()
    for structure, values in then.items():
        for metric, value in values.items():
            assert now[structure][metric] == pytest.approx(value, rel=1e-6)
    assert ak.inspect_adapter(folder / "adapter.safetensors").image_size == 64


def test_a_finished_run_is_not_resumed(tmp_path: Path, echo: Path):
    folder = shutil.copytree(FILES / "finished", tmp_path / "run")
    with pytest.raises(ValueError, match="this run is finished"):
        resume(folder, echo)
