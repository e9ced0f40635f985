"""Fixtures that many tests share.

They import what they make: the process that hands the tests out to others reads this file too.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from segment_anything.modeling import Sam
    from torch import Tensor

    from adapterkit.data.collections.camus import Frame

SHARED = Path(__file__).parents[2] / "shared"

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # Of the processes that tests start.
    import torch

    torch.set_num_threads(1)

# See encoders/test_any_parts.py.
settings.register_profile("thorough")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives each process the tests of whole files, so that what is made for a file is made once."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture
def sam() -> Sam:
    """A tiny Sam of stock classes with random weights; its grid is 64x64, as SAM's is."""
    import adapterkit as ak
    from tests.models import TINY

    return ak.build_sam(TINY, seed=0)


@pytest.fixture
def image() -> Tensor:
    """Two images, normalised, at the size that `inject_samus` gives a Sam."""
    import torch

    return torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def samus_reference() -> dict[str, Tensor]:
    """Inputs, weights, outputs and gradients of the published SAMUS."""
    from safetensors.torch import load_file

    path = SHARED / "reference" / "samus_tiny.safetensors"
    if not path.is_file():
        pytest.skip("the published SAMUS's reference tensors are not beside the project")
    return load_file(path)


@pytest.fixture(scope="module")
def small_layers_are_fast() -> Iterator[None]:
    """The fast forward takes no layer for too small to be worth it."""
    from adapterkit.kernels import linear

    with pytest.MonkeyPatch.context() as patch:
        # The package has a function of the module's name.
        patch.setattr(linear, "_MIN_MULTIPLICATIONS", 0)
        yield


@pytest.fixture
def unchecked_shapes():
    """Let wrong shapes reach the errors that a user, who runs without shape checks, will see."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `leave_figures_blank`."""
    from tests.in_small import leave_figures_blank

    leave_figures_blank(monkeypatch)


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three synthetic patients in CAMUS's layout, not to be changed."""
    from adapterkit.data.synthetic.phantom import write_phantom

    return write_phantom(tmp_path_factory.mktemp("camus") / "release", 3, image_size=64)


@pytest.fixture
def release(phantom: Path, tmp_path: Path) -> Path:
    """A copy of the phantom that a test may damage."""
    return shutil.copytree(phantom, tmp_path / "release")


@pytest.fixture
def frame(tmp_path: Path) -> Frame:
    """A frame of 6 rows and 4 columns whose files a test may replace."""
    import numpy as np

    from adapterkit.data.collections.camus import Frame
    from tests.camus_files import save

    stem = tmp_path / "patient0007_2CH_ED"
    image, mask = Path(f"{stem}.nii.gz"), Path(f"{stem}_gt.nii.gz")
    save(image, np.arange(24, dtype=np.uint8).reshape(6, 4), spacing=(0.5, 0.75))
    save(mask, np.arange(24, dtype=np.uint8).reshape(6, 4) % 4)
    return Frame("patient0007", "2CH", "ED", image, mask)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no chromium on the PATH")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass(frozen=True)
class Done:
    """What became of a call of the command `adapterkit`."""

    status: int | str
    output: str
    errors: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """A call of the command within this process; a failure's status is its one line."""
    from adapterkit import __main__ as cli

    def call(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["adapterkit", *map(str, arguments)])
        status: int | str = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err)

    return call
