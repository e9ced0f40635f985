"""Methods of Hugging Face's peft, as a part.

peft is imported where a method is built, and not before: its import takes seconds.
"""

import copy
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adapterkit.attach.attachment import CONTAINER, Attachment, Namespace, Part
from adapterkit.encoders.views import ViT
from adapterkit.encoders.wrappers import plain_names
from adapterkit.parts.registry import register_part

METHODS = (
    "AdaLoraConfig",
    "BOFTConfig",
    "C3AConfig",
    "DeloraConfig",
    "FourierFTConfig",
    "GraloraConfig",
    "HRAConfig",
    "HiraConfig",
    "IA3Config",
    "LNTuningConfig",
    "LoHaConfig",
    "LoKrConfig",
    "LoraConfig",
    "MissConfig",
    "OFTConfig",
    "RandLoraConfig",
    "RoadConfig",
    "ShiraConfig",
    "VBLoRAConfig",
    "VeraConfig",
    "WaveFTConfig",
)
"""peft's configurations that can be parts: those whose layers stand for single modules of the base,
depend on nothing outside themselves but those modules, and are wholly saved."""

REFUSED = {
    "task_type": "it wraps the whole model; leave it out, the encoder's output is the same",
    "modules_to_save": "use adapterkit.parts.Train for them",
    "bias": "it trains the base's own biases; use adapterkit.parts.Train",
    "target_parameters": "name modules in target_modules",
    "trainable_token_indices": "an image encoder embeds no tokens",
    "alora_invocation_tokens": "an image encoder embeds no tokens",
    "layer_replication": "it adds blocks to the base",
    "megatron_config": "it is for Megatron's layers",
}
"""Options that reach beyond the modules that a configuration targets, and what to do instead."""

_BOOKKEEPING = frozenset(
    {"peft_type", "peft_version", "base_model_name_or_path", "revision", "auto_mapping"}
)
_INITIALISATIONS = (True, False, "gaussian", "orthogonal")


@register_part
@dataclass(frozen=True)
class Peft:
    """Adapts modules of the model with a method of peft: LoRA, DoRA, LoHa, OFT, IA3, ...

    In a list of parts, peft's configuration can stand for it: `inject(model,
    [peft.LoraConfig(r=4, target_modules=["qkv"])])`. The configuration's `target_modules` and
    patterns are matched, as peft does, with the names of the model's modules
    ("image_encoder.blocks.0.attn.qkv" in a `Sam`); where none matches, with those within the image
    encoder ("blocks.0.attn.qkv"). Each target then computes what peft's layer computes on top of
    it; modules and state-dict keys of the base stay what they are. A module can be the target of
    one peft method, of which no other part changes the parameters.

    Whether it starts as the identity is the method's own choice; with peft's default options, most
    do (FourierFT, C3A and VB-LoRA do not). AdaLoRA trains with its initial ranks: peft allocates
    ranks and regularises in its model's training, not in its layers.

    Args:
        config: the name of peft's configuration class, one of `METHODS`.
        options: its arguments that are not peft's defaults, as plain values.
        within: where targets are looked for: "model", so in a `Sam`'s prompt encoder and mask
            decoder too, as where a configuration of peft stands for this part; or "image_encoder".
    """

    config: str
    options: Mapping[str, Any] = field(default_factory=dict)
    within: Literal["image_encoder", "model"] = "image_encoder"

    def __post_init__(self) -> None:
        if self.config not in METHODS:
            raise ValueError(
                f"Peft({self.config!r}): expected one of {', '.join(METHODS)}; peft's other "
                "methods do not stand for single modules of an image encoder, or save too little"
            )
        if not isinstance(self.options, Mapping):
            raise ValueError(f"Peft({self.config!r}, {self.options!r}): expected a dictionary")
        for name in REFUSED.keys() & self.options.keys():
            raise ValueError(f"{self.config}({name}={self.options[name]!r}): {REFUSED[name]}")
        initialisation = self.options.get("init_lora_weights", True)
        if initialisation not in _INITIALISATIONS:
            raise ValueError(
                f"{self.config}(init_lora_weights={initialisation!r}): it starts by changing the "
                f"base's weights or by measuring data; expected one of {_INITIALISATIONS}"
            )

    @classmethod
    def of(cls, config: Any) -> "Peft":
        """The part for a configuration of peft.

        Raises:
            ValueError: it is for another kind of method, or holds what is no plain value.
        """
        name = type(config).__name__
        options = {}
        for each in fields(config):
            value = getattr(config, each.name)
            default = each.default if each.default_factory is MISSING else each.default_factory()
            if each.name not in _BOOKKEEPING and value != default:
                options[each.name] = _plain(value, f"{name}({each.name}=...)")
        return cls(name, options, within="model")

    def attach(self, to: Attachment) -> None:
        config = self._build_config()
        targets = self._targets(config, to.view)
        paths = _paths(to.view, self.within)
        shared: set[nn.Module] = set()
        for name, layer in self._build_layers(config, targets).items():
            module = targets[name]
            # Outside the registered modules, for the base's tensors are not the adapter's.
            del layer._modules["base_layer"]
            layer.__dict__["base_layer"] = BaseLayer(module)
            # What several layers share (VeRA's projections) is registered, and saved, once.
            for key, child in list(layer._modules.items()):
                if child in shared:
                    del layer._modules[key]
                    layer.__dict__[key] = child
                elif child is not None:
                    shared.add(child)
            adapted = Adapted(layer, tokens=isinstance(module, nn.Linear))
            to.add(f"peft.{paths[module]}", adapted)
            to.replace_forward(module, adapted)

    def count_values(self, view: ViT) -> int | None:
        """How many values peft would add to the model, found without taking memory for them.

        None where peft has to compute something to know.

        Raises:
            ValueError: peft refuses the configuration, or the model has no target.
        """
        config = self._build_config()
        targets = self._targets(config, view)
        empty: dict[int, Any] = {
            id(value): nn.Parameter(value.detach().to("meta"), requires_grad=False)
            for module in targets.values()
            for value in module.parameters()
        }
        tree = Namespace()
        for path, module in targets.items():
            tree.place(path, copy.deepcopy(module, dict(empty)))
        try:
            with torch.device("meta"):
                _put_layers(tree, config)
        except (RuntimeError, NotImplementedError):
            return None
        ours = {
            id(value): value.numel()
            for name, value in tree.state_dict(keep_vars=True).items()
            if "base_layer" not in name.split(".")
        }
        return sum(ours.values())

    def _build_config(self) -> Any:
        import peft

        try:
            return getattr(peft, self.config)(**copy.deepcopy(dict(self.options)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self}: peft refuses it: {error}") from error

    def _targets(self, config: Any, view: ViT) -> dict[str, nn.Module]:
        """The modules of the base that the configuration names, by the names that it knows."""
        from peft.tuners.tuners_utils import check_target_module_exists
        from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND

        wanted = config.target_modules
        if not wanted:
            raise ValueError(f"{self}: give target_modules, such as ['qkv']")
        every_linear = isinstance(wanted, str) and wanted == INCLUDE_LINEAR_LAYERS_SHORTHAND
        paths = _paths(view, self.within)
        found: dict[str, nn.Module] = {}
        for names in self._namings(view, paths):
            found = {
                name: module
                for module, name in names.items()
                if (every_linear and isinstance(module, nn.Linear))
                or (not every_linear and check_target_module_exists(config, name))
            }
            if found:
                break
        if not found:
            names = {
                path.rpartition(".")[2] for m, path in paths.items() if isinstance(m, nn.Linear)
            }
            where = "model" if self.within == "model" else "image encoder"
            raise ValueError(
                f"{self}: none of the {where}'s modules is a target; it has linear layers "
                f"named {', '.join(sorted(names))}"
            )
        for path, module in found.items():
            if module._modules or not module._parameters:
                raise ValueError(
                    f"{self}: the target {path} is a {type(module).__name__}, which is no layer "
                    "with parameters of its own; name such layers"
                )
            if isinstance(module, _BatchNorm):
                raise ValueError(
                    f"{self}: the target {path} is a batch norm, whose statistics training would "
                    "change in the base; name other layers, or use adapterkit.parts.Train"
                )
        return found

    def _namings(self, view: ViT, paths: Mapping[nn.Module, str]) -> list[dict[nn.Module, str]]:
        """Names that a configuration may know the modules by, those of the user's model first."""
        plain_name = plain_names(view.model)
        of_model = {each: plain_name(name) for name, each in view.model.named_modules()}
        own = {module: of_model[module] for module in paths}
        # An encoder alone has the modules of an encoder in a Sam, on which a file may be trained.
        in_encoder = set(view.encoder.modules())
        in_sam = {
            module: f"image_encoder.{path}" if module in in_encoder else path
            for module, path in paths.items()
        }
        namings = [own, in_sam, dict(paths)]
        return namings if self.within == "model" else namings[::-1]

    def _build_layers(self, config: Any, targets: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """peft's layers for the targets, each around a copy of its target."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        # peft works on a tree of copies, of the targets and nothing else: it replaces them in it,
        # and whatever it may do to their weights, it does not do to the base.
        tree = Namespace()
        for path, module in targets.items():
            tree.place(path, _copy_with_values(module))
        try:
            # On the CPU, so that a seed gives the same on every device, and real initial values
            # where the caller builds on the meta device: peft keeps some outside the state dict.
            with torch.device("cpu"):
                _put_layers(tree, config)
        except Exception as error:
            raise ValueError(
                f"{self}: peft cannot attach it: {type(error).__name__}: {error}"
            ) from error
        layers = {path: tree.get_submodule(path) for path in targets}
        for path, layer in layers.items():
            copied = layer._modules.get("base_layer")
            if not isinstance(layer, BaseTunerLayer) or copied is None:
                raise ValueError(f"{self}: peft leaves the target {path} as it is")
            for name, parameter in copied.named_parameters():
                original = targets[path].get_parameter(name)
                expected = torch.zeros_like(parameter) if original.is_meta else original
                same = torch.equal(parameter, expected)
                if parameter.requires_grad or not same:
                    raise ValueError(f"{self}: it changes the base's own {path}.{name}")
        return layers


def _put_layers(tree: nn.Module, config: Any) -> None:
    """Replace the modules of a tree that are targets by peft's layers around them."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](tree, config, "default")


def _paths(view: ViT, within: str) -> dict[nn.Module, str]:
    """Modules that can be targets, and their names in an adapter: the encoder's from there on."""
    root = view.encoder if within == "image_encoder" else view.model
    in_encoder = {module: name for name, module in view.encoder.named_modules()}
    plain_name, plain_in_encoder = plain_names(root), plain_names(view.encoder)
    return {
        module: plain_in_encoder(in_encoder[module]) if module in in_encoder else plain_name(name)
        for name, module in root.named_modules()
        if module not in (root, view.encoder) and CONTAINER not in name.split(".")
    }


def _copy_with_values(module: nn.Module) -> nn.Module:
    """A copy, with zeros where `module` has shapes alone."""
    replica = copy.deepcopy(module)
    if any(each.is_meta for each in module.parameters()):
        replica.to_empty(device="cpu")
        for each in replica.parameters():
            each.detach().zero_()
    return replica


class Adapted(nn.Module):
    """What a module of the base computes with one of peft's layers on top of it.

    Args:
        layer: peft's, around a `BaseLayer`.
        tokens: its input is tokens, which peft's layers expect in a row; here they may lie in a
            grid. Otherwise it is an image or a map.
    """

    def __init__(self, layer: nn.Module, tokens: bool):
        super().__init__()
        self.layer = layer
        self.tokens = tokens

    def forward(self, x: Float[Tensor, "b *n c"]) -> Float[Tensor, "b *m d"]:
        if self.tokens and x.ndim > 3:
            return self.layer(x.flatten(1, -2)).unflatten(1, x.shape[1:-1])
        return self.layer(x)

    def merged(self) -> dict[str, Tensor]:
        """The parameters with which the module alone computes the same, by name.

        Raises:
            ValueError: peft cannot merge its layer.
        """
        replica: Any = copy.deepcopy(self.layer)
        replica.base_layer = replica.__dict__.pop("base_layer").module
        try:
            replica.merge(safe_merge=True)
        except Exception as error:
            raise ValueError(
                f"peft cannot merge a {type(self.layer).__name__} layer: {error}"
            ) from error
        return dict(replica.base_layer.named_parameters())


class BaseLayer:
    """What peft's layer calls its base layer: a module of the base, with the forward it had.

    Its parameters and attributes are read from the module, so they follow it to a device, a dtype
    or another checkpoint.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.forward = module.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "module":  # of an instance that is being copied or unpickled
            raise AttributeError(name)
        return getattr(self.module, name)


def as_part(part: Any) -> Part:
    """`part`, or the part for it where it is a configuration of peft."""
    # A configuration can be here only if peft has been imported.
    peft = sys.modules.get("peft")
    return Peft.of(part) if peft and isinstance(part, peft.PeftConfig) else part


def _plain(value: Any, where: str) -> Any:
    """`value` as JSON can hold it.

    Raises:
        ValueError: it cannot.
    """
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, set | frozenset):
        return sorted(_plain(each, where) for each in value)
    if isinstance(value, list | tuple):
        return [_plain(each, where) for each in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(each, where) for key, each in value.items()}
    raise ValueError(
        f"{where} holds a {type(value).__name__}, which an adapter file cannot; expected numbers, "
        "strings, and lists or dictionaries of them"
    )
