"""What is said of a process's memory is that process's own."""

import subprocess
import sys

import numpy as np
import pytest

from adapterkit.system.memory import peak_bytes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere it may be its parent's")
def test_a_child_s_peak_is_its_own():
    ballast = np.ones(300 * 2**20, np.uint8)
    child = "from adapterkit.system.memory import peak_bytes; print(peak_bytes())"
    printed = subprocess.run([sys.executable, "-c", child], stdout=subprocess.PIPE, check=True)
    assert peak_bytes() > ballast.nbytes > int(printed.stdout) > 2**20
