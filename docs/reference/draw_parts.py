"""Drawings of where each part attaches; `python docs/reference/draw_parts.py` writes them all."""

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "parts"

WIDTH, HEIGHT = 900, 178
LINE, FILL, TEXT, PART = "#667788", "#dde4ea", "#1d2730", "#ffb454"
# What the model has, from left to right: name, left edge, width.
BOXES = (
    ("image", 10, 66),
    ("patch embedding", 100, 124),
    ("attention", 318, 88),
    ("MLP", 470, 62),
    ("neck", 604, 58),
    ("mask decoder", 686, 112),
    ("masks", 822, 66),
)
CENTRES = {name: left + width / 2 for name, left, width in BOXES}
SUMS = {"position embedding": 254, "after attention": 438, "after MLP": 558}
"""Where something is added."""
PLACES = {**CENTRES, **SUMS, "block input": 296, "block output": 586, "prompts": 742}


@dataclass(frozen=True)
class Drawing:
    """A part: how its box is called, the places that it acts on, and what it reads."""

    label: str
    acts_on: tuple[str, ...]
    reads: tuple[str, ...] = ()


PARTS = {
    "FeatureAdapter": Drawing("feature adapter", ("after MLP",), ("after attention",)),
    "TemporalAttention": Drawing("attention over time", ("block output",), ("after MLP",)),
    "TemporalConv": Drawing("convolution over time", ("block output",), ("after MLP",)),
    "PositionAdapter": Drawing("position adapter", ("position embedding",)),
    "CNNBranch": Drawing("CNN branch", ("block input", "block output"), ("image",)),
    "LoRA": Drawing("LoRA on q, k, v", ("attention",)),
    "Peft": Drawing("peft's layer on any of these", ("attention", "MLP", "mask decoder")),
    "Train": Drawing("a trained copy of any of these", ("attention", "MLP", "mask decoder")),
    "Resize": Drawing("resize", ("image", "position embedding", "attention")),
    "Normalise": Drawing("normalise", ("image",)),
    "PadBeforeNorm": Drawing("padding before the norm", ("block input",)),
    "ResidualSelfAttention": Drawing("residual self-attention", ("mask decoder",)),
    "ClassPrompts": Drawing("tokens of classes", ("prompts",)),
    "ClassMasks": Drawing("a mask for each class", ("mask decoder",)),
    "PromptGenerator": Drawing("prompts made of the image embedding", ("prompts",), ("neck",)),
    "Detail": Drawing("detail: a small U-Net", ("mask decoder",), ("image", "neck")),
}


def draw(part: Drawing) -> str:
    """The SVG of a part in a vision transformer, of a Segment Anything model."""
    middle, low = 62, 138
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="14" text-anchor="middle">',
        f"<title>Where {part.label} attaches</title>",
        '<defs><marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{LINE}"/></marker>',
        "</defs>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#ffffff"/>',
        f'<g stroke="{LINE}" stroke-width="1.4" fill="none">',
        f'<path d="M76 {middle} H820" marker-end="url(#to)"/>',
        '<rect x="276" y="18" width="300" height="76" rx="6" stroke-dasharray="5 4"/>',
        # Around attention and MLP.
        *(f'<path d="M{a} {middle} V32 H{b} V{middle - 9}"/>' for a, b in ((300, 438), (452, 558))),
        f'<path d="M742 {18} V{middle - 20}" marker-end="url(#to)"/>',
        "</g>",
        f'<g fill="{FILL}" stroke="{LINE}" stroke-width="1.4">',
        *(
            f'<rect x="{left}" y="{middle - 18}" width="{width}" height="36" rx="5"/>'
            for _, left, width in BOXES
        ),
        *(f'<circle cx="{x}" cy="{middle}" r="9" fill="#ffffff"/>' for x in SUMS.values()),
        "</g>",
        f'<g fill="{TEXT}">',
        *(f'<text x="{CENTRES[name]}" y="{middle + 5}">{name}</text>' for name, *_ in BOXES),
        *(f'<text x="{x}" y="{middle + 5}">+</text>' for x in SUMS.values()),
        '<text x="240" y="30" font-size="12">positions</text>',
        '<text x="742" y="13" font-size="12">prompts</text>',
        '<text x="566" y="13" text-anchor="end" font-size="12">each block</text>',
        "</g>",
    ]
    places = [PLACES[name] for name in (*part.acts_on, *part.reads)]
    half = max((max(places) - min(places)) / 2 + 20, 4.2 * len(part.label))
    centre = min(max((max(places) + min(places)) / 2, half + 6), WIDTH - half - 6)
    lines += [
        f'<rect x="{centre - half:g}" y="{low - 16}" width="{2 * half:g}" height="34" rx="5" '
        f'fill="{PART}" stroke="{LINE}" stroke-width="1.4"/>',
        f'<text x="{centre:g}" y="{low + 6}" fill="{TEXT}">{part.label}</text>',
        f'<g stroke="{LINE}" stroke-width="1.4" fill="none">',
    ]
    for name in part.acts_on:
        x = PLACES[name] + (18 if name in part.reads else 0)
        top = middle + (20 if name in CENTRES else 11)
        if name == "prompts":  # From below, past the decoder, to where they come in.
            lines.append(f'<path d="M812 {low - 16} V24 H744" marker-end="url(#to)"/>')
        else:
            lines.append(f'<path d="M{x:g} {low - 16} V{top}" marker-end="url(#to)"/>')
    for name in part.reads:
        top = middle + (18 if name in CENTRES else 9)
        lines.append(f'<path d="M{PLACES[name]:g} {top} V{low - 17}" marker-end="url(#to)"/>')
    lines += ["</g>", "</svg>"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, part in PARTS.items():
        (FOLDER / f"{name}.svg").write_text(draw(part))
