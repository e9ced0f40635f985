"""Drawings of views, parts and methods; `python docs/concepts/draw.py` writes them all.

What those of views and methods say is asked of adapterkit.
"""

import re
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import adapterkit as ak
from adapterkit.encoders.examples import EXAMPLES
from adapterkit.encoders.views import ViT

FOLDER = Path(__file__).parent
LINE, FILL, TEXT, PART = "#333", "#e8e8e8", "#111", "#ffd9a0"
MONOSPACED = 'font-family="Consolas, Menlo, monospace" font-size="12"'
KINDS = {"output": "output of", "parallel": "beside", "input": "input of"}


def picture(title: str, width: int, height: int, shapes: Sequence[str]) -> str:
    """An SVG with a white ground."""
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            'font-family="Helvetica, Arial, sans-serif" font-size="14">',
            f"<title>{title}</title>",
            '<defs><marker id="to" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{LINE}"/></marker>',
            "</defs>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>',
            *shapes,
            "</svg>\n",
        )
    )


def text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="{TEXT}" {more}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, fill: str) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" fill="{fill}" '
        f'stroke="{LINE}" stroke-width="1.2"/>'
    )


def path(steps: str, arrow: bool = True) -> str:
    end = ' marker-end="url(#to)"' if arrow else ""
    return f'<path d="{steps}" stroke="{LINE}" stroke-width="1.4" fill="none"{end}/>'


# Views

FAMILIES = {
    "segment_anything": "segment_anything ImageEncoderViT",
    "timm": "timm VisionTransformer",
    "transformers, DINOv2": "transformers Dinov2Model",
}


def places(view: ViT) -> dict[str, str]:
    """Where each site is, in words with the modules' paths; those of blocks in one of them."""
    paths = {id(module): name for name, module in view.encoder.named_modules()}
    found = {"tokens": f"output of {paths[id(view.patch_embed)]}"}
    if view.pos_embed is not None:
        found["pos_embed"] = f"{paths[id(view.pos_embed.module)]}.{view.pos_embed.name}".strip(".")
    block = view.blocks[1]
    for name in ("attn_in", "attn_out", "mlp", "block_out"):
        site = block.sites[name]
        found[name] = f"{KINDS[site.kind]} {paths[id(site.modules[0])]}"
    first, *others = dict.fromkeys(paths[id(each.layer)] for each in block.projections.values())
    found["q, k, v"] = first + (", …" if others else "")
    return {site: re.sub(r"\.1\b", ".i", place) for site, place in found.items()}


def views() -> str:
    columns = [places(ak.view(EXAMPLES[name]())) for name in FAMILIES.values()]
    lefts, top, step = (128, 358, 600), 62, 36
    shapes = [text(16, 34, "site", 'font-weight="bold"')]
    for left, family in zip(lefts, FAMILIES, strict=True):
        shapes.append(text(left, 34, family, 'font-weight="bold"'))
    for row, site in enumerate(columns[0]):
        y = top + row * step
        shapes.append(f'<circle cx="24" cy="{y + 12}" r="7" fill="#d9720b"/>')
        shapes.append(text(38, y + 17, site, f'{MONOSPACED} font-weight="bold"'))
        for left, column, width in zip(lefts, columns, (214, 226, 286), strict=True):
            shapes.append(box(left - 8, y - 3, width, 30, FILL))
            shapes.append(text(left, y + 17, column[site], MONOSPACED))
    title = "The same sites, and the modules of three families of encoders where they are"
    return picture(title, 900, top + step * len(columns[0]) + 8, shapes)


# Parts


def _way(left: int, name: str, formula: str, shapes: Sequence[str]) -> list[str]:
    middle = 'text-anchor="middle"'
    return [
        f'<g transform="translate({left} 0)">',
        text(84, 28, name, f'{middle} {MONOSPACED} font-weight="bold"'),
        *shapes,
        text(84, 176, formula, f'{middle} font-size="13"'),
        "</g>",
    ]


def _module(x: float, words: str = "module") -> list[str]:
    return [
        box(x, 54, 62, 34, FILL),
        text(x + 31, 76, words, 'text-anchor="middle" font-size="13"'),
    ]


def _added(x: float, y: float, width: float, words: str) -> list[str]:
    middle = x + width / 2
    return [
        box(x, y, width, 30, PART),
        text(middle, y + 20, words, 'text-anchor="middle" font-size="13"'),
    ]


def _sum(x: float) -> list[str]:
    return [
        f'<circle cx="{x}" cy="71" r="9" fill="#fff" stroke="{LINE}" stroke-width="1.2"/>',
        text(x, 76, "+", 'text-anchor="middle"'),
    ]


def parts() -> str:
    """The ways in which a part can act on a module."""
    through = path("M8 71 H22"), path("M84 71 H160")
    shapes = [
        *_way(
            0,
            "add_residual",
            "y + branch(y)",
            [path("M8 71 H34"), *_module(36, "attention"), path("M98 71 H131"),
             path("M149 71 H166"), *_sum(140), path("M112 71 V124 H100", False),
             *_added(40, 110, 60, "branch"), path("M100 132 H140 V82")],
        ),
        *_way(
            178,
            "add_residual, at mlp",
            "MLP(x) + branch(x)",
            [path("M4 71 H36"), *_module(38, "MLP"), path("M100 71 H131"), path("M149 71 H166"),
             *_sum(140), path("M18 71 V125 H36"), *_added(38, 110, 62, "branch"),
             path("M100 125 H140 V82")],
        ),
        *_way(
            356,
            "before, after",
            "hook(x), then hook(y)",
            [path("M0 71 H8"), *_added(10, 56, 42, "hook"), path("M52 71 H62"), *_module(64),
             path("M126 71 H132"), *_added(134, 56, 42, "hook"), path("M176 71 H184")],
        ),
        *_way(
            546,
            "overlay",
            "reads f(W); W stays",
            [*_module(22), *through, *_added(32, 106, 42, "f"), path("M53 104 V90"),
             box(108, 108, 34, 26, FILL), text(125, 126, "W", 'text-anchor="middle"'),
             path("M106 121 H76")],
        ),
        *_way(
            724,
            "set",
            "until it is ejected",
            [*_module(22), *through, *_added(26, 106, 54, "value"), path("M53 104 V90")],
        ),
    ]  # fmt: skip
    return picture("The ways in which a part acts on a module of the base", 900, 196, shapes)


# Methods

COLUMNS = (
    "image", "tokens", "positions", "attention", "MLP", "block", "prompts", "mask decoder",
)  # fmt: skip
AT = {
    "tokens": "tokens",
    "attn_in": "attention",
    "attn_out": "attention",
    "mlp": "MLP",
    "block_out": "block",
}
OF_TRAIN = {"rel_pos": "attention", "prompt_encoder": "prompts", "mask_decoder": "mask decoder"}
PLACES: dict[str, Callable[[Any], tuple[str, str]]] = {
    "Resize": lambda part: ("image", f"{part.image_size} pixels"),
    "Normalise": lambda part: ("image", "mean, std"),
    "PositionAdapter": lambda part: ("positions", "pooled"),
    "FeatureAdapter": lambda part: (AT[part.at], "adapter"),
    "TemporalAttention": lambda part: (AT[part.at], "over time"),
    "PadBeforeNorm": lambda part: ("block", "padding"),
    "CNNBranch": lambda part: ("block", "CNN branch"),
    "LoRA": lambda part: ("attention", f"LoRA on {', '.join(part.targets)}"),
    "Train": lambda part: (OF_TRAIN[part.what], "rel_pos" if part.what == "rel_pos" else "trained"),
    "ClassPrompts": lambda part: ("prompts", "classes"),
    "PromptGenerator": lambda part: ("prompts", "generated"),
    "ClassMasks": lambda part: ("mask decoder", "classes"),
    "Detail": lambda part: ("mask decoder", "detail, in time" if part.reach else "detail"),
    "ResidualSelfAttention": lambda part: ("mask decoder", "self-attention"),
}
"""Where in the drawing a part stands, and how it is called there."""


def cells(method: str, view: ViT) -> dict[str, list[str]]:
    """What a method attaches at each of COLUMNS."""
    found: dict[str, list[str]] = {}
    names = "structures" in ak.methods.find_method(method).options
    options = {"structures": ("a",)} if names else {}
    for part in ak.methods.parts_of(method, view, **options):
        column, label = PLACES[type(part).__name__](part)
        found.setdefault(column, []).append(label)
    return found


def methods() -> str:
    """A row for each method, with a box for each of its parts."""
    view = ak.view(ak.mini_sam())
    left, width, step = 132, 95, 26
    middle = 'text-anchor="middle" font-size="12"'
    shapes: list[str] = []
    y = 52
    for method in ak.methods.method_names():
        row = cells(method, view)
        height = step * max(map(len, row.values())) + 12
        shapes += [
            path(f"M12 {y} H{left + width * len(COLUMNS)}", False).replace("1.4", "0.5"),
            text(12, y + 22, method, MONOSPACED),
        ]
        for column, labels in row.items():
            x = left + width * COLUMNS.index(column)
            for place, label in enumerate(labels):
                shapes.append(box(x + 2, y + 6 + step * place, width - 4, 22, PART))
                shapes.append(text(x + width / 2, y + 21 + step * place, label, middle))
        y += height
    heads = [
        text(left + width * (place + 0.5), 34, name, f'{middle} font-weight="bold"')
        for place, name in enumerate(COLUMNS)
    ]
    title = "What each method attaches, and where"
    return picture(title, left + width * len(COLUMNS) + 12, y + 4, [*heads, *shapes])


DRAWINGS = {"views": views, "parts": parts, "methods": methods}

if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        (FOLDER / f"{name}.svg").write_text(draw())
