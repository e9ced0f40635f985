"""A Segment Anything model with its adapters, as files that run without adapterkit.

They are ONNX, or what PyTorch's `export` writes.

A folder holds the encoder with its adapters, the prompt encoder and mask decoder as one decoder,
and `export.json`, which says what they are. An image is encoded once; each prompt then costs the
decoder alone. Inputs and outputs have `segment_anything`'s names, and a batch of images and
several prompted structures of each, as a `Segmenter` has:

| file | name | shape | what |
|---|---|---|---|
| encoder | images | (B, 3, S, S) | RGB in [0, 255]; the encoder normalises them |
| | image_embeddings | (B, C, h, w) | |
| | detail_maps | (B, c, S, S) | with a `Detail` part |
| decoder | image_embeddings | (B, C, h, w) | what the encoder gave |
| | detail_maps | (B, c, S, S) | the same |
| | classes | (B, K) int64 | with `ClassPrompts`: its number, -1 for none |
| | point_coords | (B, K, N, 2) | (x, y) in pixels of the input |
| | point_labels | (B, K, N) int64 | 1 inside, 0 outside, 2 and 3 a box's upper left and lower \
right corner, -1 no point |
| | mask_input | (B, K, 4h, 4w) | logits of an earlier prediction |
| | has_mask_input | (B, K) | 1 where mask_input counts, 0 where not |
| | low_res_masks | (B, K, 4, 4h, 4w), with `Detail` (B, K, 4, S, S) | logits, above 0 is inside; \
the first mask is the answer, the other three are for ambiguous prompts |
| | iou_predictions | (B, K, 4) | the model's own estimate of each mask's quality |
| | presence | (B, K) | with `ClassPrompts`: logits, below 0 the structure is not in the image |

All are float32 but labels and classes. B, K and N are free. A structure without a box gets a
further point (0, 0) of label -1, as in `segment_anything`'s own export; one that is asked for by
its class alone, two such points.
"""

import copy
import inspect
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from adapterkit.adapters.injection import adapters_of
from adapterkit.attach.actions import Overlay
from adapterkit.attach.overlay import overlays, set_overlay
from adapterkit.inference.exported_models import Decoder, Encoder
from adapterkit.kernels.fast_forward import stock
from adapterkit.promptable.families import family_of, titles
from adapterkit.promptable.segmenter import Segmenter
from adapterkit.system.extras import require
from adapterkit.system.files import atomic_folder, is_new_folder

OPSET = 20
"""ONNX's operator set: the first with GELU, which onnxruntime fuses."""


def export(
    sam: nn.Module,
    folder: str | Path,
    format: Literal["onnx", "torch"] = "onnx",
    int8: bool = False,
    classes: Sequence[str] = (),
) -> None:
    """Write `sam` with its active adapters to a new folder, all of it or nothing.

    `encoder.onnx` and `decoder.onnx` need onnxruntime. `encoder.pt2` and `decoder.pt2` need the
    PyTorch that wrote them or a newer one: `torch.export.load("encoder.pt2").module()`. They hold
    plain tensors and a graph, so that loading them unpickles nothing; but `torch.export.load`
    would unpickle what a foreign file asks it to, so load no others.

    Args:
        sam: what a `Segmenter` takes, stock or `fast`, on any device and of any dtype; it stays as
            it is. The files are for float32.
        folder: a new or an empty one.
        format: "onnx", or "torch" for PyTorch's export.
        int8: with "onnx", linear layers compute in eight bits, for CPUs: their weights are rounded
            once, in steps of their own for each channel, and what they are given at every run.
        classes: names of the structures that it segments.

    Raises:
        TypeError: `sam` is none that a `Segmenter` takes.
        FileExistsError: the folder exists and is not empty.
        FileNotFoundError: there is no folder to make it in.
        ValueError: int8 is asked of PyTorch's format, the adapter in use has temporal parts, or
            the extra `export` is not installed.
        OSError: it cannot be written; the disk is full, say.
    """
    family = family_of(sam)
    if family is None:
        raise TypeError(f"export: expected {titles()}, not a {type(sam).__qualname__}")
    if int8 and format != "onnx":
        raise ValueError(f"int8 is for the format onnx, and the format is {format}")
    if format == "onnx":
        require("export", "onnx", "onnxscript", "onnxruntime")
    _check_exportable(sam)
    mean, std = Segmenter(sam).normalisation
    found = adapters_of(sam)
    active = [found[name] for name in found.active] if found else []
    about: dict[str, Any] = {
        "adapterkit": version("adapterkit"),
        "format": format,
        "weights": "int8" if int8 else "float32",
        "parts": [str(part) for adapter in active for part in adapter.parts],
        "classes": list(Segmenter(sam).structures or classes),
        "image_size": family.image_size,
        "mean": mean.flatten().tolist(),
        "std": std.flatten().tolist(),
        "use": "Give the encoder RGB in [0, 255]; it normalises. Give each structure "
        f"{'' if family.box_tokens else 'without a box '}a further point (0, 0) of label -1, and "
        "one asked for by its class alone two.",
    }
    folder = Path(folder)
    if not is_new_folder(folder):
        raise FileExistsError(f"{folder} exists and is not an empty folder; name another")
    with atomic_folder(folder) as draft:
        for graph in _graphs(_settled(family.model)):
            program = graph.trace()
            if format == "torch":
                file = draft / f"{graph.name}.pt2"
                torch.export.save(program, file)
            else:
                file = draft / f"{graph.name}.onnx"
                _write_onnx(program, graph, file, int8)
            about[graph.name] = {"file": file.name, **graph.about()}
        (draft / "export.json").write_text(json.dumps(about, indent=2) + "\n")


def _check_exportable(sam: nn.Module) -> None:
    """Refuse adapters of which an encoder and a decoder of prompts is not all."""
    if not Segmenter(sam).takes_clicks or Segmenter(sam).generates_prompts:
        raise ValueError(
            "an adapter with ClassMasks or PromptGenerator, which needs no prompt, cannot be "
            "exported: what is written is a decoder of prompts"
        )
    reach = Segmenter(sam).reach
    if reach:
        raise ValueError(
            f"the adapter in use has temporal parts, which compute a frame of {reach} before and "
            "after it, and an exported encoder takes each image of a batch on its own; "
            "run it with Predictor.predict_sequence or adapterkit predict, or export an adapter "
            "without temporal parts"
        )


@torch.no_grad()
def _settled(sam: nn.Module) -> nn.Module:
    """A copy whose overlaid parameters are what they are seen as, without what made them so.

    What lies over a parameter depends on parameters alone: a position embedding interpolated, a
    weight with its low-rank update. It is computed here, once, rather than in the exported graph.
    Its forward is the stock one: the fast one attends in as many pieces as the batch is large.
    """
    sam = stock(copy.deepcopy(sam)).to("cpu", torch.float32).eval().requires_grad_(False)
    for module in sam.modules():
        for name in overlays(module):
            seen = getattr(module, name).clone(memory_format=torch.contiguous_format)
            set_overlay(module, name, ())
            module._parameters[name] = nn.Parameter(seen, requires_grad=False)
    found = adapters_of(sam)
    if found is None:
        return sam
    for name, adapter in found.items():
        if name not in found.active:
            delattr(found, name)
            continue
        for each in list(adapter.attached):
            if all(isinstance(action, Overlay) for action in (*each.actions, *each.last_actions)):
                adapter.remove(each)
    return sam


@dataclass(frozen=True)
class Graph:
    """A model to trace.

    Attributes:
        name: of its file.
        model: what it computes.
        inputs: an example of each, in order.
        free: which of their axes are free, and their names.
        outputs: their names, in order.
    """

    name: str
    model: nn.Module
    inputs: Mapping[str, Tensor]
    free: Mapping[str, Mapping[int, str]]
    outputs: Sequence[str]

    @torch.no_grad()
    def trace(self) -> ExportedProgram:
        axes = {name: Dim(name) for each in self.free.values() for name in each.values()}
        return torch.export.export(
            self.model.eval(),
            tuple(self.inputs.values()),
            dynamic_shapes=self.by_argument(axes),
        )

    def by_argument(self, axes: Mapping[str, Any]) -> tuple[Any, ...]:
        """What stands for each free axis, in the order of the model's arguments, of which the last
        may be several."""
        free = [
            {axis: axes[size] for axis, size in self.free[name].items()} for name in self.inputs
        ]
        parameters = inspect.signature(self.model.forward).parameters
        kinds = [each.kind for each in parameters.values()]
        named = len(kinds) - kinds.count(inspect.Parameter.VAR_POSITIONAL)
        return (*free[:named], tuple(free[named:])) if free[named:] else tuple(free)

    @property
    def axis_names(self) -> dict[str, str]:
        """Each free axis's name, by itself."""
        return {name: name for each in self.free.values() for name in each.values()}

    def about(self) -> dict[str, Any]:
        inputs = {
            name: {
                "dtype": str(example.dtype).removeprefix("torch."),
                "shape": [self.free[name].get(i, size) for i, size in enumerate(example.shape)],
            }
            for name, example in self.inputs.items()
        }
        return {"inputs": inputs, "outputs": list(self.outputs)}


def _graphs(sam: nn.Module) -> Iterator[Graph]:
    side = Segmenter(sam).image_size
    # Sizes that differ from each other and from 1, so that none is taken for another.
    b, k, n = 2, 3, 4
    images = torch.zeros(b, 3, side, side)
    embedding = Segmenter(sam).encode(images)
    maps, (height, width) = embedding.maps, embedding.image.shape[-2:]
    # "default.detail.maps" is "detail_maps", as far as that is one name for each.
    short = {name: name.partition(".")[2].replace(".", "_") for name in sorted(maps)}
    named = short if len(set(short.values())) == len(maps) else {n: n for n in short}
    yield Graph(
        name="encoder",
        model=Encoder(sam),
        inputs={"images": images},
        free={"images": {0: "batch"}},
        outputs=["image_embeddings", *named.values()],
    )
    per_prompt = {0: "batch", 1: "prompts"}
    per_point = {**per_prompt, 2: "points"}
    handed_on = {each: maps[name] for name, each in named.items()}
    by_name = bool(Segmenter(sam).structures)
    classes = {"classes": torch.zeros(b, k, dtype=torch.long)} if by_name else {}
    yield Graph(
        name="decoder",
        model=Decoder(sam, sorted(maps)),
        inputs={
            "image_embeddings": torch.zeros_like(embedding.image),
            "point_coords": torch.zeros(b, k, n, 2),
            "point_labels": torch.zeros(b, k, n, dtype=torch.long),
            "mask_input": torch.zeros(b, k, 4 * height, 4 * width),
            "has_mask_input": torch.zeros(b, k),
            **handed_on,
            **classes,
        },
        free={
            "image_embeddings": {0: "batch"},
            "point_coords": per_point,
            "point_labels": per_point,
            "mask_input": per_prompt,
            "has_mask_input": per_prompt,
            **{name: {0: "batch"} for name in handed_on},
            **dict.fromkeys(classes, per_prompt),
        },
        outputs=["low_res_masks", "iou_predictions", *(["presence"] if by_name else [])],
    )


def _write_onnx(program: ExportedProgram, graph: Graph, file: Path, int8: bool) -> None:
    with warnings.catch_warnings():
        # It says of each axis named twice that the name counts once.
        warnings.filterwarnings("ignore", message="# The axis name")
        onnx = torch.onnx.export(
            program,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=graph.by_argument(graph.axis_names),
            opset_version=OPSET,
            verbose=False,
        )
    assert onnx is not None
    # Beyond 2 GB an ONNX file can but refer to another that holds the weights.
    beside = sum(each.nbytes for each in program.state_dict.values()) > 2e9
    if not int8:
        onnx.save(file, external_data=beside)
        return
    from onnxruntime.quantization import quantize_dynamic

    # Or else it warns that shapes may be missing; the exporter has put them in.
    onnx.model.metadata_props["onnx.quant.pre_process"] = "onnxruntime.quant"
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / file.name
        onnx.save(plain, external_data=beside)
        # With all eight bits, CPUs without VNNI instructions overflow in sums of products.
        quantize_dynamic(
            plain,
            file,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=True,
        )
