"""What was computed from parameters alone, kept until they change."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class LastResult:
    """The last result of a computation on parameters, in evaluation.

    The parameters are compared with a copy of what they were, which costs far less than a
    convolution: version counters do not see a change through `data`. While gradients are recorded,
    traced or compiled, nothing is kept. A copy starts empty.
    """

    def __init__(self) -> None:
        self._state: tuple[torch.dtype | None, list[Tensor]] = None, []
        self._result: Tensor | None = None

    def __reduce__(self) -> tuple[type["LastResult"], tuple[()]]:
        return LastResult, ()

    def of(self, parameters: Iterable[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        """`compute()`, or what it gave when the parameters were the same, under the same autocast.

        Args:
            parameters: all that the result depends on.
            compute: of the parameters, without a random choice.
        """
        parameters = list(parameters)
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or any(type(each) not in (Tensor, torch.nn.Parameter) for each in parameters)
            or parameters[0].is_meta
        ):
            return compute()
        device = parameters[0].device
        cast = torch.is_autocast_enabled(device.type)
        precision = torch.get_autocast_dtype(device.type) if cast else None
        was_precision, were = self._state
        if (
            self._result is None
            or precision != was_precision
            or not all(_equal(a, b) for a, b in zip(parameters, were, strict=True))
        ):
            self._result = compute()
            self._state = precision, [each.detach().clone() for each in parameters]
        return self._result


def _equal(one: Tensor, other: Tensor) -> bool:
    return (one.dtype, one.device) == (other.dtype, other.device) and torch.equal(one, other)
