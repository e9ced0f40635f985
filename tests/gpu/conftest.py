"""The device of the tests that are for a GPU."""

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def device() -> Iterator[str]:
    """The GPU, in full float32 precision; the CPU where ADAPTERKIT_REHEARSE is set."""
    if not torch.cuda.is_available() and not os.environ.get("ADAPTERKIT_REHEARSE"):
        pytest.skip("no GPU here; ADAPTERKIT_REHEARSE=1 rehearses this test on the CPU")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        yield "cuda" if torch.cuda.is_available() else "cpu"
