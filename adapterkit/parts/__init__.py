"""The parts, as dataclasses that say what is attached where, and the modules behind them."""

from adapterkit.parts.class_masks import ClassMasks
from adapterkit.parts.class_prompts import ClassPrompts
from adapterkit.parts.cnn_branch import CNNBranch, ConvBranch, CrossBranchAttention
from adapterkit.parts.detail import Detail, DetailNet
from adapterkit.parts.feature_adapter import Bottleneck, FeatureAdapter
from adapterkit.parts.lora import LoRA, LowRankUpdate
from adapterkit.parts.normalise import Normalise
from adapterkit.parts.peft import Adapted, BaseLayer, Peft, as_part
from adapterkit.parts.position_adapter import PooledPosition, PositionAdapter
from adapterkit.parts.prompt_generator import PromptGenerator, PromptNet
from adapterkit.parts.registry import PARTS, register_part
from adapterkit.parts.resize import Resize
from adapterkit.parts.temporal_attention import AttentionOverTime, TemporalAttention
from adapterkit.parts.temporal_conv import ConvOverTime, TemporalConv
from adapterkit.parts.train import Train
from adapterkit.parts.two_way import ResidualSelfAttention
from adapterkit.parts.window_padding import PadBeforeNorm

__all__ = [
    "PARTS",
    "Adapted",
    "AttentionOverTime",
    "BaseLayer",
    "Bottleneck",
    "CNNBranch",
    "ClassMasks",
    "ClassPrompts",
    "ConvBranch",
    "ConvOverTime",
    "CrossBranchAttention",
    "Detail",
    "DetailNet",
    "FeatureAdapter",
    "LoRA",
    "LowRankUpdate",
    "Normalise",
    "PadBeforeNorm",
    "Peft",
    "PooledPosition",
    "PositionAdapter",
    "PromptGenerator",
    "PromptNet",
    "ResidualSelfAttention",
    "Resize",
    "TemporalAttention",
    "TemporalConv",
    "Train",
    "as_part",
    "register_part",
]
