"""Small models, and what there is to compare about a model."""

from typing import Any

import torch
from torch import Tensor, nn

from adapterkit.promptable.stock_sam import SamConfig

TINY = SamConfig(
    width=48,
    depth=6,
    num_heads=2,
    global_blocks=(2, 5),
    prompt_width=32,
    decoder_mlp_width=64,
    decoder_num_heads=4,
    iou_head_width=32,
)
"""The configuration of the published SAMUS's reference tensors."""

ECHO = SamConfig(
    width=32, depth=4, num_heads=2, global_blocks=(1, 3), image_size=256, prompt_width=32,
    decoder_mlp_width=64,
)  # fmt: skip
"""One that learns to segment synthetic echo of 64x64 pixels within seconds."""


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that ejecting must restore: classes, attributes, hooks, flags, keys and every bit."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        found[f"class {path}"] = type(module)
        found[f"modules {path}"] = list(module._modules)
        for name, value in vars(module).items():
            if isinstance(value, int | float | str | bool | tuple):
                found[f"attribute {path}.{name}"] = value
            elif name.endswith("_hooks"):
                hooks = (value or {}).values()
                found[f"hooks {path}.{name}"] = [type(hook).__qualname__ for hook in hooks]
            elif name not in ("_parameters", "_buffers", "_modules"):
                found[f"attribute {path}.{name}"] = type(value)
        for name, value in [*module._parameters.items(), *module._buffers.items()]:
            if isinstance(value, Tensor):
                found[f"flag {path}.{name}"] = (type(value), value.requires_grad, value.device)
                found[f"bits {path}.{name}"] = (value.dtype, value.detach().numpy().tobytes())
    found["keys"] = list(model.state_dict())
    return found


def train_one_step(model: nn.Module, image: Tensor) -> None:
    """One step of gradient descent on what requires gradients, big enough to move every tensor."""
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    output = model(image)
    target = torch.rand(output.shape, generator=torch.Generator().manual_seed(2))
    (output - target).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def random_prompts(
    batch: int, prompts: int, points: int, seed: int, side: int = 256
) -> tuple[Tensor, Tensor]:
    """Points anywhere in an image, and their labels, 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    coordinates = (side - 1) * torch.rand(batch, prompts, points, 2, generator=generator)
    return coordinates, torch.randint(0, 2, (batch, prompts, points), generator=generator)
