"""An encoder of one's own, and what adapterkit is told of it: for `adapterkit --plugin` too."""

# --8<-- [start:encoder]
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

import adapterkit as ak
from adapterkit.encoders.described import BlockNames, Description
from adapterkit.encoders.views import ViT

SIDE, WIDTH = 64, 48


class Mine(nn.Module):
    """Patches of 8 pixels, positions, four blocks, and a head for whatever is asked."""

    def __init__(self, outputs: int):
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTH, kernel_size=8, stride=8)
        self.place = nn.Parameter(0.1 * torch.randn(1, (SIDE // 8) ** 2, WIDTH))
        self.trunk = nn.ModuleList(Block(WIDTH, num_heads=3) for _ in range(4))
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).flatten(2).mT + self.place
        for layer in self.trunk:
            tokens = layer(tokens)
        return self.head(tokens.mean(dim=1))


# --8<-- [end:encoder]


# --8<-- [start:family]
@ak.register_family
def mine(model: nn.Module) -> ViT | None:
    """What the modules of a `Mine` are called; None for other models."""
    if not isinstance(model, Mine):
        return None
    block = BlockNames(
        r"trunk\.\d+",  # of the modules' paths, those of blocks
        attn_in="norm1",
        attn_out="attn",
        mlp="mlp",
        layers={"qkv": "attn.qkv"},
    )
    return Description("mine", patch_embed="stem", blocks=(block,)).view(model, image_size=SIDE)


# --8<-- [end:family]
