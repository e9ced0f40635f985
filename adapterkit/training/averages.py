"""An exponential moving average of the weights that are trained."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """Of trained parameters; it starts as they are.

    After t steps the share that stays is min(decay, (1 + t) / (10 + t)), so that the average of a
    short training is not of its first weights. Buffers, such as the statistics of a batch
    normalisation, are averages already, and stay the model's.

    Args:
        named: the parameters, by name.
        decay: the share that stays at each step, in (0, 1).
    """

    def __init__(self, named: Mapping[str, nn.Parameter], decay: float):
        self._parameters: Sequence[nn.Parameter] = list(named.values())
        self._decay = decay
        self.tensors = {f"average.{name}": each.detach().clone() for name, each in named.items()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the parameters after so many steps."""
        decay = min(self._decay, (1 + steps) / (10 + steps))
        averages = list(self.tensors.values())
        get_ema_multi_avg_fn(decay)(averages, self._parameters, steps)  # pyright: ignore[reportArgumentType]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it, the parameters are their averages."""
        own = [each.detach().clone() for each in self._parameters]
        self._set(list(self.tensors.values()))
        try:
            yield
        finally:
            self._set(own)

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
