"""Parts that forget half of what a part does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

import adapterkit as ak
from adapterkit.attach.attachment import Attachment
from adapterkit.parts import PARTS, register_part
from tests.models import snapshot


class Doubling:
    """What calls a module, as users write it."""

    def __init__(self, branch: nn.Module):
        self.branch = branch

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + self.branch(output)


@dataclass(frozen=True)
class Forgetful:
    """A linear layer at the blocks' outputs, connected as `how` says, and perhaps not added."""

    how: str
    adds: bool

    def attach(self, to: Attachment) -> None:
        block = to.view.blocks[0]
        layer = nn.Linear(to.site("block_out", block).width, to.site("block_out", block).width)
        if self.adds:
            to.add("forgetful", layer)
        if self.how == "residual":
            to.add_residual("block_out", layer, block=block)
        elif self.how == "object":
            to.after(block.module, Doubling(layer))
        elif self.how == "function":
            to.after(block.module, lambda module, args, output: output + layer(output))
        elif self.how == "method":
            to.add_residual("block_out", layer.forward, block=block)


@pytest.mark.parametrize("how", ["residual", "object", "function", "method"])
def test_a_module_that_is_not_added_is_refused(sam: Sam, how: str):
    before = snapshot(sam)
    with pytest.raises(
        ValueError, match=r"Forgetful: a Linear takes part .* expected to\.add\(PATH, module\)"
    ):
        ak.inject(sam, [Forgetful(how, adds=False)])
    assert snapshot(sam) == before
    ak.inject(sam, [Forgetful(how, adds=True)])


def test_modules_that_nothing_calls_are_refused(sam: Sam):
    with pytest.raises(ValueError, match="Forgetful adds 'forgetful', and nothing that would call"):
        ak.inject(sam, [Forgetful("", adds=True)])


def test_a_frozen_module_may_be_the_users_own(sam: Sam):
    @dataclass(frozen=True)
    class Guided:
        def attach(self, to: Attachment) -> None:
            to.add_residual("tokens", nn.LayerNorm(to.site("tokens").width).requires_grad_(False))

    ak.inject(sam, [Guided()])


@dataclass(frozen=True)
class Unregistered:
    rank: Any = 1

    def attach(self, to: Attachment) -> None:
        layer = nn.Linear(to.site("output").width, to.site("output").width)
        to.add("unregistered", layer)
        to.add_residual("output", layer)


def test_a_part_that_no_file_can_name_is_not_saved(sam: Sam, tmp_path: Path):
    ak.inject(sam, [Unregistered()])
    with pytest.raises(
        ValueError, match=r"the part Unregistered is not registered, .*@register_pa"
    ):
        ak.save_adapter(sam, tmp_path / "a.safetensors")
    assert not any(tmp_path.iterdir())


def test_a_part_of_other_than_plain_values_is_not_saved(
    sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(PARTS, "Unregistered", Unregistered)
    ak.inject(sam, [Unregistered(torch.ones(2))])
    with pytest.raises(
        ValueError, match=r"Tensor is not JSON .*expected a part whose fields are pl"
    ):
        ak.save_adapter(sam, tmp_path / "a.safetensors")


def test_a_part_that_can_change_is_not_registered():
    @dataclass
    class Thawed:
        def attach(self, to: Attachment) -> None: ...

    with pytest.raises(TypeError, match=r"Thawed: expected a class with @dataclass\(frozen=True\)"):
        register_part(Thawed)
