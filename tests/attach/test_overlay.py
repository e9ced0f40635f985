"""An overlay changes what a module reads from a parameter, and nothing else."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from adapterkit.attach.overlay import Override, overlays, raw_parameter, set_overlay


class Double(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return 2 * value


class AddOne:
    def __call__(self, value: Tensor) -> Tensor:
        return value + 1


@pytest.fixture
def layer() -> nn.Linear:
    return nn.Linear(3, 2)


def test_transforms_apply_in_order_and_come_off(layer: nn.Linear):
    weight, x = layer.weight, torch.randn(4, 3)
    set_overlay(layer, "weight", (Double(), AddOne()))
    torch.testing.assert_close(layer.weight, 2 * weight + 1)
    torch.testing.assert_close(layer(x), x @ (2 * weight + 1).T + layer.bias)
    set_overlay(layer, "weight", ())
    assert layer.weight is weight
    assert type(layer) is nn.Linear
    assert overlays(layer) == {}
    assert set(vars(layer)) == set(vars(nn.Linear(3, 2)))


def test_keys_parameters_and_loading_are_the_plain_ones(layer: nn.Linear):
    weight = layer.weight
    set_overlay(layer, "weight", (Double(),))
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert dict(layer.named_parameters())["weight"] is weight
    assert raw_parameter(layer, "weight") is weight
    for assign in (False, True):
        state = {"weight": torch.full((2, 3), 5.0), "bias": torch.zeros(2)}
        layer.load_state_dict(state, assign=assign)
        assert (layer.weight == 10).all()
    assert layer.to(torch.float64).weight.dtype == torch.float64
    assert isinstance(layer, nn.Linear)
    assert "Linear(in_features=3" in repr(layer)


def test_two_parameters_of_one_module_are_independent(layer: nn.Linear):
    bias = layer.bias
    set_overlay(layer, "weight", (Double(),))
    set_overlay(layer, "bias", (AddOne(),))
    set_overlay(layer, "weight", ())
    torch.testing.assert_close(layer.bias, bias + 1)
    assert set(overlays(layer)) == {"bias"}


def test_copies_are_independent(layer: nn.Linear):
    set_overlay(layer, "weight", (Double(),))
    expected = layer.weight
    replicas = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    set_overlay(layer, "weight", ())
    for replica in replicas:
        assert torch.equal(replica.weight, expected)
        assert overlays(replica)["weight"][0] is not overlays(layer).get("weight", (None,))[0]
        set_overlay(replica, "weight", ())
        assert type(replica) is nn.Linear


def test_gradients_reach_the_parameter_and_the_transform(layer: nn.Linear):
    trained = Override(torch.ones(2, 3))
    set_overlay(layer, "weight", (trained,))
    layer(torch.ones(1, 3)).sum().backward()
    assert trained.value.grad is not None
    assert raw_parameter(layer, "weight").grad is None


def test_an_override_copies_its_initial_value(layer: nn.Linear):
    trained = Override(layer.weight)
    with torch.no_grad():
        trained.value.add_(1)
    assert not torch.equal(trained.value, layer.weight)


def test_compile_and_export_see_through_it(layer: nn.Linear):
    set_overlay(layer, "weight", (Double(),))
    x = torch.randn(4, 3)
    expected = layer(x)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), expected)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected)
