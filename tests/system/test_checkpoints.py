"""State dicts in the checkpoints of training scripts."""

import argparse
import pathlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import adapterkit as ak
from adapterkit.promptable.stock_sam import load_sam
from adapterkit.system.checkpoints import load_state_dict
from tests.models import TINY

WEIGHTS = {"image_encoder.pos_embed": torch.arange(3.0), "mask_decoder.weight": torch.ones(2)}


def assert_is_weights(found: dict[str, Tensor]) -> None:
    assert list(found) == list(WEIGHTS)
    assert all(torch.equal(found[key], value) for key, value in WEIGHTS.items())


@pytest.mark.parametrize(
    "beside",
    [
        {"best_tol": np.float64(0.9), "epoch": np.int64(3), "done": np.bool_(True)},
        {"losses": np.linspace(0, 1, 5, dtype=np.float32), "optimizer": {"state": {}}},
        {"args": argparse.Namespace(net="sam", b=2), "model": "sam"},
    ],
)
def test_harmless_objects_beside_the_weights_are_read_past(tmp_path: Path, beside: dict[str, Any]):
    torch.save({**beside, "state_dict": WEIGHTS}, tmp_path / "c.pth")
    assert_is_weights(load_state_dict(tmp_path / "c.pth"))


def test_a_number_of_an_older_numpy_is_read_past(tmp_path: Path):
    path = tmp_path / "c.pth"
    torch.save(
        {"state_dict": WEIGHTS, "best": np.float64(1)}, path, _use_new_zipfile_serialization=False
    )
    stored = path.read_bytes()
    assert b"numpy._core.multiarray\n" in stored
    path.write_bytes(stored.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"))
    assert_is_weights(load_state_dict(path))


@pytest.mark.parametrize(
    ("harmful", "name"),
    [
        (nn.Linear(1, 1), r"torch\.nn\.modules\.linear\.Linear"),
        (pathlib.PurePosixPath("a"), r"PurePosixPath"),
    ],
)
def test_other_objects_are_refused_by_name(tmp_path: Path, harmful: Any, name: str):
    torch.save({"state_dict": WEIGHTS, "other": harmful}, tmp_path / "c.pth")
    with pytest.raises(
        ValueError, match=rf"c\.pth is not .* It holds a \S*{name}, which adapterkit does not load"
    ):
        load_state_dict(tmp_path / "c.pth")


def test_nothing_in_a_file_is_executed(tmp_path: Path):
    class Harmful:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return Path.touch, (tmp_path / "executed",)

    (tmp_path / "c.pth").write_bytes(pickle.dumps({"state_dict": Harmful()}, protocol=2))
    with pytest.raises(ValueError, match="is not a checkpoint of tensors alone"):
        load_state_dict(tmp_path / "c.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "sam.", "module._orig_mod.", "_orig_mod.module.", "net."],
)
@pytest.mark.parametrize("holder", ["state_dict", "model", "model_state_dict", None])
def test_wrappers_are_seen_through(tmp_path: Path, prefix: str, holder: str | None):
    weights: dict[str, Any] = {prefix + key: value for key, value in WEIGHTS.items()}
    torch.save({holder: weights, "epoch": 1} if holder else weights, tmp_path / "c.pth")
    assert_is_weights(load_state_dict(tmp_path / "c.pth"))


def test_wrappers_within_are_seen_through(tmp_path: Path):
    weights = {key.replace(".", "._orig_mod.", 1): value for key, value in WEIGHTS.items()}
    torch.save({"model": {"state_dict": weights}}, tmp_path / "c.pth")
    assert_is_weights(load_state_dict(tmp_path / "c.pth"))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, AveragedModel])
def test_a_sam_saved_in_a_wrapper_loads(tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]):
    sam = ak.build_sam(TINY, seed=0)
    torch.save(wrap(sam).state_dict(), tmp_path / "sam.pth")
    found = load_sam(tmp_path / "sam.pth", decoder_num_heads=TINY.decoder_num_heads).state_dict()
    assert all(torch.equal(found[key], value) for key, value in sam.state_dict().items())


def test_names_that_not_all_keys_have_are_kept(tmp_path: Path):
    weights = {"model.weight": torch.ones(1), "head.weight": torch.ones(1)}
    torch.save(weights, tmp_path / "c.pth")
    assert list(load_state_dict(tmp_path / "c.pth")) == list(weights)


def test_a_published_checkpoint_in_a_wrapper_loads(tmp_path: Path):
    sam = ak.build_sam(TINY, seed=0)
    weights = {f"_orig_mod.module.{key}": value + 1 for key, value in sam.state_dict().items()}
    torch.save({"model": weights, "dice": np.float32(0.9)}, tmp_path / "medsam.pth")
    ak.load_published(sam, tmp_path / "medsam.pth", "medsam", load_base=True)
