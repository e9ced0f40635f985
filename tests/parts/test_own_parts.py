"""What a part of one's own is told of the tokens that it is given."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

import adapterkit as ak
from adapterkit.attach.attachment import Attachment
from adapterkit.encoders.examples import EXAMPLES
from adapterkit.encoders.views import Site


@dataclass(frozen=True)
class OnGrids:
    """Takes the tokens of each block apart and puts them together again, and adds nothing."""

    seen: list[tuple[int, ...]] = field(default_factory=list)
    expected: list[tuple[int, ...]] = field(default_factory=list)

    def attach(self, to: Attachment) -> None:
        for block in to.select("all"):
            site = to.site("block_out", block)
            assert site.layout.in_order
            self.expected.append((2, *site.grid, site.width))
            to.add_residual("block_out", ToGridAndBack(site, self.seen), block=block)


@dataclass(frozen=True)
class ToGridAndBack:
    site: Site
    seen: list[tuple[int, ...]]

    def __call__(self, tokens: Tensor) -> Tensor:
        grid = self.site.layout.grid(tokens)
        self.seen.append(tuple(grid.shape))
        back = self.site.layout.of_grid(grid)
        assert back.shape == tokens.shape
        return 0 * back


@pytest.mark.parametrize(
    "name",
    [
        "segment_anything ImageEncoderViT",
        "timm VisionTransformer",
        "timm PyramidVisionTransformerV2",
        "timm ConvNeXt",
        "transformers Dinov2Model",
    ],
)
@torch.no_grad()
def test_a_branch_gets_tokens_of_which_the_site_makes_the_grid(name: str):
    model, image, part = EXAMPLES[name](), torch.rand(2, 3, 64, 64), OnGrids()
    ak.inject(model, [part])
    part.seen.clear()
    model(image)
    assert part.seen == part.expected
