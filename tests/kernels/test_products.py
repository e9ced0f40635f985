"""The fast layers, convolutions by Winograd's algorithm and linear layers by oneDNN among them,
equal PyTorch's own."""

from collections.abc import Callable
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from adapterkit.attach.overlay import set_class, set_overlay
from adapterkit.kernels import relative_attention
from adapterkit.kernels.fast_forward import FastConv2d, FastConvBlock, FastLinear, FastMaxPool2d
from adapterkit.kernels.onednn import linear
from adapterkit.kernels.relative_attention import attention
from adapterkit.kernels.winograd import winograd
from adapterkit.parts.conv import ConvBlock
from adapterkit.parts.lora import LowRankUpdate

pytestmark = pytest.mark.usefixtures("small_layers_are_fast")


def results(compute: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The output, and the gradients of the inputs that want one."""
    inputs = tuple(each.detach().requires_grad_(each.requires_grad) for each in inputs)
    output = compute(*inputs)
    weights = torch.rand(output.shape, generator=torch.Generator().manual_seed(1))
    wanted = [each for each in inputs if each.requires_grad]
    return [output, *torch.autograd.grad(output, wanted, weights.to(output.dtype))]


def kept_for_the_gradient(compute: Callable[[], Tensor]) -> list[Tensor]:
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        compute()
    return kept


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    channels_last=st.booleans(),
)
def test_winograd_is_the_convolution(
    batch: int, channels: tuple[int, int], size: tuple[int, int], channels_last: bool
):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels[0], *size, generator=generator)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(*channels[::-1], 3, 3, generator=generator)
    x.requires_grad_()
    kernel.requires_grad_()

    def plain(x: Tensor, kernel: Tensor) -> Tensor:
        return F.conv2d(x, kernel, padding=1)

    found = results(winograd, x, kernel)
    expected = results(plain, x.double(), kernel.double())
    for one, other in zip(found, expected, strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-5 * scale)


def test_its_rounding_error_is_a_millionth():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 256, 32, 32, generator=generator)
    kernel = torch.randn(256, 256, 3, 3, generator=generator) / 48
    exact = F.conv2d(x.double(), kernel.double(), padding=1)
    assert (winograd(x, kernel) - exact).norm() < 2e-6 * exact.norm()


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    wanted=st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any),
    with_bias=st.booleans(),
)
def test_a_linear_layer_by_onednn_is_the_linear_layer(
    shape: list[int],
    channels: tuple[int, int],
    wanted: tuple[bool, bool, bool],
    with_bias: bool,
):
    generator = torch.Generator().manual_seed(0)
    shapes = ((*shape, channels[0]), channels[::-1], channels[1:])
    tensors = [torch.randn(each, generator=generator) for each in shapes]
    tensors = [each.requires_grad_(want) for each, want in zip(tensors, wanted, strict=True)]
    if not with_bias:
        del tensors[2]
        if not any(wanted[:2]):
            return
    x, weight, *bias = tensors
    found = results(lambda x, weight, bias=None: linear(x, weight, bias), x, weight, *bias)
    expected = results(F.linear, x, weight, *bias)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_frozen_linear_layer_keeps_no_input():
    layer = FastLinear(8, 8).requires_grad_(False)
    kept = kept_for_the_gradient(lambda: layer(torch.rand(100, 8, requires_grad=True)))
    assert [each.shape for each in kept] == [layer.weight.shape]


def test_low_rank_updates_are_trained_without_a_gradient_of_the_weight():
    layer = nn.Linear(64, 192).requires_grad_(False)
    updates = tuple(LowRankUpdate(64, rows, 2, scale=0.5) for rows in ((0, 64), (128, 192)))
    for each in updates:
        nn.init.normal_(each.b)
    trained = [parameter for each in updates for parameter in each.parameters()]
    x = torch.randn(2, 50, 64, requires_grad=True)
    found, operations = [], []
    for kind in (nn.Linear, FastLinear):
        set_class(layer, kind)
        set_overlay(layer, "weight", updates)
        with FlopCounterMode(display=False) as counter:
            output = layer(x)
            output.square().sum().backward()
        found.append([output, *(each.grad for each in (x, *trained))])
        for each in (x, *trained):
            each.grad = None
        operations.append(counter.get_total_flops())
        with torch.no_grad():
            torch.testing.assert_close(layer(x), output)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-3)
    product = 2 * x.shape[:2].numel() * 64 * 192
    assert operations[1] < 2.5 * product < operations[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_layers_take_every_precision(dtype: torch.dtype):
    x = torch.rand(2, 128, 32, 32, dtype=dtype)
    convolution, tokens = FastConv2d(128, 128, 3, padding=1).to(dtype), x.flatten(2).mT
    layer = FastLinear(128, 8).to(dtype)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5

    def check(found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)

    check(convolution(x), nn.Conv2d.forward(convolution, x))
    check(layer(tokens), nn.Linear.forward(layer, tokens))
    with torch.autocast("cpu", torch.bfloat16):
        for found in (convolution(x), layer(tokens)):
            assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.bfloat16)


def test_gradients_under_autocast_are_of_the_parameters_precision():
    layer = FastLinear(16, 8)
    x = torch.rand(4, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    output.float().sum().backward()
    assert layer.weight.grad is not None
    assert x.grad is not None
    assert {layer.weight.grad.dtype, x.grad.dtype} == {torch.float32}
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(4, -1), rtol=0.02, atol=0.02)
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(8, -1), rtol=0.02, atol=0.02)


@settings(max_examples=40, deadline=None)
@given(
    kernel_size=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    ceil_mode=st.booleans(),
    channels_last=st.booleans(),
)
def test_pooling_is_pytorchs_of_every_setting(
    kernel_size: int, stride: int, padding: int, dilation: int, ceil_mode: bool, channels_last: bool
):
    padding = min(padding, kernel_size // 2)
    setting = (kernel_size, stride, padding, dilation, False, ceil_mode)
    x = torch.randn(2, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    found = results(FastMaxPool2d(*setting), x.requires_grad_())
    assert all(map(torch.equal, found, results(nn.MaxPool2d(*setting), x)))


def test_pooling_keeps_only_where_the_largest_are():
    x = torch.rand(1, 4, 8, 8, requires_grad=True)
    kept = kept_for_the_gradient(lambda: FastMaxPool2d(2)(x))
    assert [(each.shape, each.dtype) for each in kept] == [((1, 4, 4, 4), torch.int32)]


def test_pooling_still_says_where_the_largest_are():
    x = torch.rand(1, 4, 8, 8, requires_grad=True)
    found = FastMaxPool2d(2, return_indices=True)(x)
    assert all(map(torch.equal, found, nn.MaxPool2d(2, return_indices=True)(x)))


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("channels", [3, 8])
def test_a_convolution_block_is_the_plain_one(channels: int, pool: bool):
    plain, faster = ConvBlock(channels, 64, pool), FastConvBlock(channels, 64, pool)
    faster.load_state_dict(plain.state_dict())
    x = torch.randn(2, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    outputs = [block(x) for block in (plain, faster)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for one, other in zip(plain.parameters(), faster.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("channels", "maps"), [(3, 0), (8, 1)])
def test_a_convolution_block_keeps_its_input_and_no_map_of_an_image(channels: int, maps: int):
    block, x = FastConvBlock(channels, 64), torch.rand(2, channels, 16, 16)
    kept = {each.data_ptr(): each.numel() for each in kept_for_the_gradient(lambda: block(x))}
    for each in block.parameters():
        kept.pop(each.data_ptr(), None)
    assert sum(kept.values()) == x.numel() + maps * 2 * 64 * 16 * 16


@settings(max_examples=40, deadline=None)
@given(
    heads=st.integers(1, 3),
    queries=st.integers(1, 40),
    keys=st.integers(1, 40),
    channels=st.integers(1, 16),
    weights_of_a_piece=st.sampled_from([1, 500, 2**22]),
    tokens_first=st.booleans(),
)
def test_attention_in_bf16_is_no_less_exact_than_pytorchs(
    heads: int, queries: int, keys: int, channels: int, weights_of_a_piece: int, tokens_first: bool
):
    generator = torch.Generator().manual_seed(0)

    def random(length: int) -> Tensor:
        x = torch.randn(2, heads, length, channels, generator=generator)
        x = x.transpose(1, 2).contiguous().transpose(1, 2) if tokens_first else x
        return x.bfloat16().requires_grad_()

    inputs = random(queries), random(keys), random(keys)
    attend = F.scaled_dot_product_attention
    exact = results(attend, *(each.detach().double().requires_grad_() for each in inputs))
    with mock.patch.object(relative_attention, "_PIECE", weights_of_a_piece):
        found = results(attention, *inputs)

    def errors(of: list[Tensor]) -> list[float]:
        return [(a - b).norm().item() for a, b in zip(of, exact, strict=True)]

    sizes = [each.norm().item() for each in exact]
    for ours, pytorchs, size in zip(
        errors(found), errors(results(attend, *inputs)), sizes, strict=True
    ):
        # Five roundings to eight bits; PyTorch's fused form has fewer where there is one query.
        assert ours <= 1.5 * pytorchs + 5 * 2**-8 * size


def test_attention_in_bf16_keeps_no_weights():
    q, k, v = (torch.rand(1, 2, 64, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    kept = kept_for_the_gradient(lambda: attention(q, k, v))
    assert [each.data_ptr() for each in kept] == [each.data_ptr() for each in (q, k, v)]


@pytest.mark.parametrize("channels", [3, 128])
def test_what_a_convolution_gives_are_tokens(channels: int):
    layer = FastConv2d(channels, 128, 3, padding=1)
    x = torch.rand(2, channels, 32, 32)
    found = layer(x)
    assert found.permute(0, 2, 3, 1).is_contiguous()
    torch.testing.assert_close(found, F.conv2d(x, layer.weight, layer.bias, padding=1))
    torch.testing.assert_close(layer(x[0]), found[0])
