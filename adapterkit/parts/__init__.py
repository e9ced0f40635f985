"""The parts, as dataclasses that say what is attached where, and the modules behind them."""

from collections.abc import Callable

from adapterkit.attach.attachment import Part
from adapterkit.parts.cnn_branch import CNNBranch, ConvBranch, CrossBranchAttention
from adapterkit.parts.feature_adapter import Bottleneck, FeatureAdapter
from adapterkit.parts.lora import LoRA, LowRankUpdate
from adapterkit.parts.normalise import Normalise
from adapterkit.parts.peft import Adapted, BaseLayer, Peft, as_part
from adapterkit.parts.position_adapter import PooledPosition, PositionAdapter
from adapterkit.parts.resize import Resize
from adapterkit.parts.train import Train

PARTS: dict[str, Callable[..., Part]] = {
    part.__name__: part
    for part in (Resize, Normalise, PositionAdapter, FeatureAdapter, CNNBranch, LoRA, Peft, Train)
}
"""The dataclasses by name, as an adapter file names them."""

__all__ = [
    "PARTS",
    "Adapted",
    "BaseLayer",
    "Bottleneck",
    "CNNBranch",
    "ConvBranch",
    "CrossBranchAttention",
    "FeatureAdapter",
    "LoRA",
    "LowRankUpdate",
    "Normalise",
    "Peft",
    "PooledPosition",
    "PositionAdapter",
    "Resize",
    "Train",
    "as_part",
]
