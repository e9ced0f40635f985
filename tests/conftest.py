"""Fixtures that many tests share."""

import os
from pathlib import Path

import jaxtyping
import pytest
import torch
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from torch import Tensor

import adapterkit as ak
from tests.models import TINY

SHARED = Path(__file__).parents[2] / "shared"

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture
def sam() -> Sam:
    """A tiny Sam of stock classes with random weights; its grid is 64x64, as SAM's is."""
    return ak.build_sam(TINY, seed=0)


@pytest.fixture
def image() -> Tensor:
    """Two images, normalised, at the size that `inject_samus` gives a Sam."""
    return torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def samus_reference() -> dict[str, Tensor]:
    """Inputs, weights, outputs and gradients of the published SAMUS."""
    path = SHARED / "reference" / "samus_tiny.safetensors"
    if not path.is_file():
        pytest.skip("the published SAMUS's reference tensors are not beside the project")
    return load_file(path)


@pytest.fixture
def unchecked_shapes():
    """Let wrong shapes reach the errors that a user, who runs without shape checks, will see."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
