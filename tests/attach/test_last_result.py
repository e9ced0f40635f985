"""What is kept of a computation on parameters is never out of date."""

import copy
import pickle

import torch
from torch import Tensor, nn

import adapterkit as ak
from adapterkit.attach.last_result import LastResult


class Doubled:
    """Twice a parameter, and how often that was computed."""

    def __init__(self) -> None:
        self.last, self.times = LastResult(), 0

    def __call__(self, parameter: Tensor) -> Tensor:
        return self.last.of([parameter], lambda: self.compute(parameter))

    def compute(self, parameter: Tensor) -> Tensor:
        self.times += 1
        return 2 * parameter


def test_it_is_computed_once_for_each_value():
    doubled, parameter = Doubled(), nn.Parameter(torch.ones(3))
    with torch.no_grad():
        for times, change in enumerate(
            (
                lambda: None,
                lambda: parameter.add_(1),
                lambda: setattr(parameter, "data", torch.full((3,), 7.0)),
                lambda: parameter.copy_(torch.zeros(3)),
                lambda: parameter.data.add_(3),
            ),
            start=1,
        ):
            change()
            for _ in range(2):
                assert torch.equal(doubled(parameter), 2 * parameter)
            assert doubled.times == times
        other = nn.Parameter(torch.ones(3))
        assert torch.equal(doubled(other), 2 * other)


def test_nothing_is_kept_where_gradients_are_recorded():
    doubled, parameter = Doubled(), nn.Parameter(torch.ones(3))
    with torch.no_grad():
        doubled(parameter)
    assert doubled(parameter).requires_grad
    assert doubled(parameter).requires_grad
    assert doubled.times == 3


def test_autocast_counts():
    last, layer = LastResult(), nn.Linear(4, 4)
    with torch.no_grad():
        for _ in range(2):
            full = last.of(layer.parameters(), lambda: layer(torch.ones(1, 4)))
            with torch.autocast("cpu", torch.bfloat16):
                half = last.of(layer.parameters(), lambda: layer(torch.ones(1, 4)))
            assert (full.dtype, half.dtype) == (torch.float32, torch.bfloat16)


def test_a_copy_starts_empty():
    doubled, parameter = Doubled(), nn.Parameter(torch.ones(3))
    with torch.no_grad():
        doubled(parameter)
        for last in (copy.deepcopy(doubled.last), pickle.loads(pickle.dumps(doubled.last))):
            assert torch.equal(last.of([parameter], lambda: parameter + 1), parameter + 1)


def test_a_trained_position_adapter_is_seen_at_once():
    adapter = ak.parts.PooledPosition(8, 1)
    grid = torch.rand(1, 4, 4, 8)
    with torch.no_grad():
        before = adapter(grid)
        assert adapter(grid) is before
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1.0)
    adapter(grid).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        after = adapter(grid)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, adapter(grid).detach())
