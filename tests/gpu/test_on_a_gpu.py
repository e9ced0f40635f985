"""What is proved on the CPU elsewhere holds on a GPU too."""

import copy
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from torch import Tensor

import adapterkit as ak
from adapterkit.data.collections.camus import CamusDataset, find_frames
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.evaluation.evaluation import Evaluation
from adapterkit.training.accelerator import make_accelerator
from adapterkit.training.loop import train
from adapterkit.training.losses import dice_bce_loss
from adapterkit.training.settings import Settings
from tests.models import ECHO, snapshot
from tests.training.test_two_processes import LAUNCH, ROOT

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("small_layers_are_fast")]

SIZE = 128
METHODS = ("samus", "samed", "msa", "medsam")


def adapted(method: str, device: str) -> Sam:
    sam = ak.build_sam(ECHO, seed=0)
    torch.manual_seed(0)
    return ak.inject(sam, method, image_size=SIZE).to(device)


def loss_of(sam: Sam, device: str) -> Tensor:
    """On two images and two structures each."""
    generator = torch.Generator().manual_seed(1)
    images = 255 * torch.rand(2, 3, SIZE, SIZE, generator=generator)
    points = SIZE * torch.rand(2, 2, 1, 2, generator=generator)
    labels = torch.ones(2, 2, 1, dtype=torch.long)
    prompts = ak.Prompts(points, labels).to(device)
    logits = ak.Segmenter(sam)(images.to(device), prompts).low_res_logits
    target = torch.rand(logits.shape, generator=generator) > 0.5
    return dice_bce_loss(logits, target.to(logits))


def gradients(sam: Sam, device: str) -> dict[str, Tensor]:
    sam.zero_grad()
    loss_of(sam, device).backward()
    return {name: each.grad for name, each in sam.named_parameters() if each.grad is not None}


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every tensor differs by at most `tolerance` of its norm, or of a small share of the largest.

    Some gradients are zero by nature, of key biases say, and hold rounding noise.
    """
    assert found.keys() == expected.keys()
    largest = max(each.float().norm() for each in expected.values()).item()
    for name, value in expected.items():
        difference = (found[name].cpu().float() - value.cpu().float()).norm().item()
        assert difference <= tolerance * max(value.float().norm().item(), 1e-4 * largest), name


def embedding(sam: Sam, device: str) -> Tensor:
    image = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2)).to(device)
    with torch.no_grad():
        return sam.image_encoder(image)


@pytest.mark.parametrize("method", METHODS)
def test_the_fast_forward_agrees_with_the_stock_one(device: str, method: str):
    stock = adapted(method, device)
    fast = ak.fast(copy.deepcopy(stock))
    assert_near({"": embedding(fast, device)}, {"": embedding(stock, device)}, 1e-5)
    assert_near(gradients(fast, device), gradients(stock, device), 1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_it_agrees_with_the_cpu(device: str, method: str):
    here, there = adapted(method, "cpu"), adapted(method, device)
    assert_near({"": embedding(there, device)}, {"": embedding(here, "cpu")}, 1e-4)
    assert_near(gradients(there, device), gradients(here, "cpu"), 1e-3)


@pytest.mark.parametrize("is_fast", [False, True], ids=["stock", "fast"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_a_step_in_half_precision_is_near_one_in_full(device: str, dtype, is_fast: bool):
    sam = adapted("samus", device)
    expected = loss_of(sam, device).item()
    sam = ak.fast(sam) if is_fast else sam
    trained = {name: each for name, each in sam.named_parameters() if each.requires_grad}
    before = {name: each.detach().clone() for name, each in trained.items()}
    optimizer = torch.optim.Adam(trained.values(), lr=1e-3)
    scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)  # pyright: ignore[reportPrivateImportUsage]
    with torch.autocast(device, dtype):
        loss = loss_of(sam, device)
    assert loss.item() == pytest.approx(expected, rel=0.02)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    changed = [name for name, each in trained.items() if not torch.equal(each, before[name])]
    assert len(changed) > 0.9 * len(trained)
    assert all(each.isfinite().all() for each in trained.values())


def test_steps_reduce_the_loss(device: str):
    sam = ak.fast(adapted("samus", device))
    optimizer = torch.optim.Adam([p for p in sam.parameters() if p.requires_grad], lr=1e-3)
    first = loss_of(sam, device).item()
    for _ in range(10):
        optimizer.zero_grad()
        loss_of(sam, device).backward()
        optimizer.step()
    assert loss_of(sam, device).item() < first - 0.004


def test_an_adapter_moves_between_gpu_and_cpu_and_ejects(device: str, tmp_path: Path):
    sam = adapted("samus", device)
    ak.save_adapter(sam, tmp_path / "a.safetensors")
    expected = embedding(sam, device).cpu()
    there = ak.load_adapter(ak.build_sam(ECHO, seed=0), tmp_path / "a.safetensors")
    assert_near({"": embedding(there, "cpu")}, {"": expected}, 1e-4)
    here = ak.load_adapter(ak.build_sam(ECHO, seed=0).to(device), tmp_path / "a.safetensors")
    assert {each.device.type for each in here.parameters()} == {device}
    assert torch.equal(embedding(here, device).cpu(), expected)
    assert snapshot(ak.eject(here).cpu()) == snapshot(ak.build_sam(ECHO, seed=0))


def test_compiled_it_computes_the_same(device: str):
    if device == "cpu":
        pytest.skip("what the CPU's compiler gives is tested elsewhere")
    for method in ("samus", "samed"):
        sam = adapted(method, device)
        expected = embedding(sam, device)
        sam.image_encoder.compile()
        assert_near({"": embedding(sam, device)}, {"": expected}, 1e-4)


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> CamusDataset:
    folder = write_phantom(tmp_path_factory.mktemp("phantom") / "echo", patients=2, image_size=64)
    return CamusDataset(find_frames(folder), image_size=64)


def trained(echo: CamusDataset, device: str, precision: Any, state: Path) -> tuple[list, Sam]:
    AcceleratorState._reset_state()  # Which keeps the first precision that it was given.
    sam = ak.build_sam(ECHO, seed=0)
    torch.manual_seed(0)
    ak.inject(sam, "samus", image_size=64)
    history = train(
        ak.Segmenter(ak.fast(sam)).to(device),
        echo,
        echo,
        Settings(epochs=2, batch_size=2, learning_rate=1e-3),
        accelerator=make_accelerator(precision),
        on_improvement=lambda _: None,
        state_file=state,
        state_minutes=0,
    )
    return history, sam


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_run_goes_on_as_if_it_had_not_stopped(
    device: str, echo: CamusDataset, tmp_path: Path, monkeypatch, precision: str
):
    if device == "cpu" and precision == "fp16":
        pytest.skip("accelerate trains in fp16 on GPUs alone")
    whole, expected = trained(echo, device, precision, tmp_path / "whole.safetensors")

    def stop(*_: Any, **__: Any) -> None:
        raise Interrupted

    state = tmp_path / "state.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("adapterkit.training.loop.dice_of_images", stop)
        with pytest.raises(Interrupted):
            trained(echo, device, precision, state)
    resumed, found = trained(echo, device, precision, state)
    assert [each.epoch for each in resumed] == [1, 2]
    # Sums of a GPU differ in their last bits from run to run.
    for one, other in zip(resumed, whole, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-3 if precision == "no" else 1e-2)
    if device == "cpu":
        pairs = zip(found.parameters(), expected.parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


def test_processes_on_two_gpus_train_one_adapter(device: str, tmp_path: Path):
    if torch.cuda.device_count() < 2:
        pytest.skip(f"{torch.cuda.device_count()} GPUs here, and this needs two")
    write_phantom(tmp_path / "echo", patients=2, image_size=64)
    done = subprocess.run(
        [*LAUNCH, "-m", "tests.training.test_two_processes", str(tmp_path)],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first[0] == second[0]
    weights, others = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(value, others[name]) for name, value in weights.items())
    scores = [Evaluation.read_csv(tmp_path / f"{rank}.csv") for rank in range(2)]
    assert scores[0].names == scores[1].names
