"""Memory that is freed: kept, and given back."""

import platform

import pytest

from tests.processes import Process, run

HALF_OF_ALL_IS_FREE = """
import torch
from adapterkit.system.allocator import give_back_freed_memory, keep_freed_memory

def resident_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

assert keep_freed_memory()
kept = [torch.ones(2**18) for _ in range(400)]
full = resident_mib()
del kept[::2]
freed = resident_mib()
give_back_freed_memory()
print(full - freed, freed - resident_mib(), sum(each.sum().item() for each in kept) / 2**18)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_stays_until_it_is_given_back():
    run(process := Process(HALF_OF_ALL_IS_FREE))
    at_once, given_back, kept = map(float, process.output.split())
    assert at_once < 10
    # 200 tensors of 1 MiB, less the pages that they share with their neighbours.
    assert given_back > 180
    assert kept == 200
