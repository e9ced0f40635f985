"""Which promptable model a model is, for each family of them."""

from segment_anything.modeling import Sam
from torch import nn

from adapterkit.encoders.wrappers import unwrapped
from adapterkit.promptable.protocol import Promptable
from adapterkit.promptable.segmenter import Segmenter


def as_promptable(model: nn.Module) -> Promptable:
    """`model` as a promptable model, which keeps it as its own.

    Args:
        model: a `Sam` of `segment_anything`, or a `Promptable` already; wrapped or not.

    Raises:
        TypeError: it is of no family that can be prompted.
    """
    model = unwrapped(model) if isinstance(model, nn.Module) else model
    if isinstance(model, Promptable):
        return model
    if isinstance(model, Sam):
        return Segmenter(model)
    raise TypeError(
        f"a {type(model).__module__}.{type(model).__qualname__} cannot be prompted; expected a "
        "segment_anything Sam, or an adapterkit.promptable.protocol.Promptable"
    )
