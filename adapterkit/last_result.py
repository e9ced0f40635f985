"""What was computed from parameters alone, kept until they change."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LastResult:
    """The last result of a computation on parameters, in evaluation.

    While gradients are recorded, traced or compiled, nothing is kept. A copy starts empty.
    """

    def __init__(self) -> None:
        self._state: list[Any] = []
        self._parameters: list[Tensor] = []
        self._result: Tensor | None = None

    def __reduce__(self) -> tuple[type["LastResult"], tuple[()]]:
        return LastResult, ()

    def of(self, parameters: Iterable[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        """`compute()`, or what it gave when the parameters were the same, under the same autocast.

        Args:
            parameters: all that the result depends on. A change in place or of their `data` counts.
            compute: of the parameters, without a random choice.
        """
        parameters = list(parameters)
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or any(each.is_inference() for each in parameters)
        ):
            return compute()
        state: list[Any] = [(each.data_ptr(), each.shape, each._version) for each in parameters]
        device = parameters[0].device.type
        state += [torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)]
        if self._result is None or state != self._state:
            # Held, so that no other tensor can come to lie where one of them is.
            self._parameters = [each.detach() for each in parameters]
            self._state, self._result = state, compute()
        return self._result
