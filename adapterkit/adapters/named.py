"""The adapters of one encoder, by name."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from adapterkit.attach.actions import clash
from adapterkit.attach.attachment import Adapter


class Adapters(nn.Module):
    """The adapters of one encoder, by name, and what it takes to leave the base as it was.

    Attributes:
        active: names of the adapters that take part in the forward pass, in order of application.
    """

    def __init__(self) -> None:
        super().__init__()
        self.active: tuple[str, ...] = ()
        self._frozen: list[tuple[nn.Module, str]] = []
        self.register_load_state_dict_pre_hook(_keep_adapters_when_loading_a_base)

    def __getitem__(self, name: str) -> Adapter:
        adapter = self._modules.get(name)
        if not isinstance(adapter, Adapter):
            raise ValueError(f"no adapter is named {name!r}; there is {', '.join(self.names)}")
        return adapter

    def items(self) -> Iterator[tuple[str, Adapter]]:
        return ((name, self[name]) for name in self.names)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._modules)

    def activate(self, names: Sequence[str]) -> None:
        """Make exactly these adapters take part, applied in this order.

        Raises:
            ValueError: a name is unknown or given twice, or two of the adapters set the
                same (input size, normalisation), are made for images of other sizes, or change one
                module that peft adapts; nothing has changed then.
        """
        wanted = [self[name] for name in names]
        if len(set(names)) < len(names):
            raise ValueError(f"adapters {tuple(names)}: each can be active once")
        actions = [action for adapter in wanted for action in adapter.actions]
        found = clash(actions)
        if found:
            raise ValueError(f"adapters {tuple(names)} cannot be stacked: {found}")
        for name in reversed(self.active):
            self[name].deactivate()
        self.active = ()
        for name, adapter in zip(names, wanted, strict=True):
            adapter.activate()
            self.active = (*self.active, name)

    def handed_on(self) -> dict[str, Tensor]:
        """What active adapters' parts in the decoder read of the image that was encoded last.

        It is empty for most adapters. Keep it with the image's embedding for `given`; see
        `attach.context`.

        Returns:
            By the adapter's name, a dot and the value's: tensors with one entry per image.
        """
        return {
            f"{name}.{key}": value
            for name in self.active
            for key, value in self[name].context.handed_on().items()
        }

    @contextmanager
    def given(self, handed_on: Mapping[str, Tensor]) -> Iterator[None]:
        """Within it, parts in the decoder read what `handed_on` gave."""
        with ExitStack() as stack:
            for name in self.active:
                values = {
                    key.removeprefix(f"{name}."): value
                    for key, value in handed_on.items()
                    if key.startswith(f"{name}.")
                }
                stack.enter_context(self[name].context.given(values))
            yield

    @property
    def reach(self) -> int:
        """How many frames before and after it in a sequence an image's embedding depends on, by the
        active adapters; 0 where each image is on its own."""
        return sum(self[name].context.reach for name in self.active)

    @contextmanager
    def sequences(self, frames: int) -> Iterator[None]:
        """Within it, the encoder's images are sequences, one after the other in the batch.

        Args:
            frames: T, of each sequence; the encoder takes N * T images.
        """
        with ExitStack() as stack:
            for _, adapter in self.items():
                stack.enter_context(adapter.context.sequences(frames))
            yield

    def freeze(self, model: nn.Module) -> None:
        """Stop training every parameter of the base, and remember which were trained."""
        own = set(self.modules())
        for module in (each for each in model.modules() if each not in own):
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.requires_grad:
                    parameter.requires_grad_(False)
                    self._frozen.append((module, name))

    def unfreeze(self) -> None:
        """Train again what was trained before `freeze`."""
        for module, name in self._frozen:
            parameter = module._parameters[name]
            assert parameter is not None
            parameter.requires_grad_(True)
        self._frozen.clear()

    def __prepare_scriptable__(self) -> nn.Module:
        """Called by `torch.jit.script`, which compiles Python that hooks and overlays do not
        keep to."""
        raise ValueError(
            "torch.jit.script does not take a model with adapters; record it with "
            "torch.jit.trace(model, images), or eject or merge the adapters first"
        )


def _keep_adapters_when_loading_a_base(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    # A base checkpoint knows nothing of adapters; it must still load strictly.
    if not any(key.startswith(prefix) for key in state_dict):
        state_dict.update({prefix + key: value for key, value in module.state_dict().items()})
