"""A run as one page for a browser, `report.html`: all that it shows is in the file itself."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.ticker import MaxNLocator

from adapterkit.data.files.palette import colour
from adapterkit.evaluation.drawings import Drawing
from adapterkit.evaluation.evaluation import Evaluation
from adapterkit.evaluation.metrics import Statistics
from adapterkit.evaluation.plots import new_figure
from adapterkit.evaluation.tables import HEADS, extremes, table_rows, volume_tables
from adapterkit.system.files import atomic_write

_IN_THE_LIST = ("hausdorff95_mm", "hausdorff95_px")
"""The distance in the list of images: the first that is known."""


@dataclass(frozen=True)
class Contents:
    """What a report is made of.

    Attributes:
        title: of the page.
        setting: what was done, line by line.
        evaluations: by what was evaluated, as they are compared in the tables.
        main: the one of them whose images are shown.
        history: a record of each epoch, with the loss, the validation Dice and, as "structures",
            that of each structure.
        reported: attributes of the images by whose values there are tables too.
        images: a small drawing of each image.
        cases: large drawings by the index of the image; of `extremes(main)`.
        further: title, heads and rows of further tables.
    """

    title: str
    setting: Mapping[str, str]
    evaluations: Mapping[str, Evaluation]
    main: Evaluation
    history: Sequence[Mapping[str, Any]]
    reported: Sequence[str]
    images: Sequence[Drawing]
    cases: Mapping[int, Drawing]
    further: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = ()


def write_report(path: Path, contents: Contents) -> None:
    """Write a report as an HTML file that needs no other, atomically.

    Names and texts are escaped, wherever they come from.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    structures = list(contents.main.structures)
    page = environment.get_template("report.html").render(
        contents=contents,
        structures=structures,
        colours=[_hexadecimal(k) for k in range(len(structures))],
        tables=_tables(contents),
        curves=_curves(contents.history),
        cases=_cases(contents),
        **_list(contents),
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _tables(contents: Contents) -> list[dict[str, Any]]:
    """Of all images, then of the images of each value of an attribute."""
    of_all = {name: each.summary() for name, each in contents.evaluations.items()}
    tables = [_table("All test images", of_all)]
    for attribute in contents.reported:
        by_value = {n: each.summary_by(attribute) for n, each in contents.evaluations.items()}
        for value in next(iter(by_value.values())):
            rows = {name: each[value] for name, each in by_value.items()}
            tables.append(_table(f"{attribute} {value}", rows))
    tables += [
        {"title": title, "heads": heads, "rows": rows}
        for title, heads, rows in [*volume_tables(contents.evaluations), *contents.further]
    ]
    return tables


def _table(title: str, summaries: Mapping[str, Statistics]) -> dict[str, Any]:
    heads, rows = table_rows(summaries)
    return {"title": title, "heads": heads, "rows": rows}


def _cases(contents: Contents) -> list[dict[str, Any]]:
    dice = contents.main.values["dice"]
    return [
        {
            "structure": k,
            "title": title,
            "name": contents.main.names[index],
            "dice": f"{dice[index, k]:.3f}",
            "drawing": contents.cases[index],
        }
        for k, of_each in enumerate(extremes(contents.main))
        for title, index in of_each.items()
    ]


def _list(contents: Contents) -> dict[str, Any]:
    """The columns and rows of the list of images; each cell has what is shown and what sorts."""
    main = contents.main
    distance = next((metric for metric in _IN_THE_LIST if metric in main.values), None)
    texts = list(main.attributes[0])
    several = len(main.structures) > 1
    columns = [*texts, *(["mean Dice"] if several else []), *(f"Dice {s}" for s in main.structures)]
    columns += [f"mean {HEADS[distance][0]}"] if distance else []
    rows = []
    for index, name in enumerate(main.names):
        known = main.attributes[index]
        dice = main.values["dice"][index].tolist()
        cells: list[tuple[str, str | float]] = [(known[text], known[text]) for text in texts]
        scores = (sum(dice) / len(dice), *dice) if several else dice
        cells += [(f"{value:.3f}", value) for value in scores]
        if distance:
            far = float(main.values[distance][index].mean())
            cells.append((f"{far:.1f}", far))
        rows.append({"name": name, "cells": cells, "drawing": contents.images[index]})
    return {"columns": columns, "texts": len(texts), "rows": rows}


def _curves(history: Sequence[Mapping[str, Any]]) -> str | None:
    """Loss, and Dice of each structure, by epoch, as a URL that holds the drawing."""
    if not history:
        return None
    figure = new_figure(10, 2.8)
    left, right = figure.subplots(1, 2)
    epochs = [each["epoch"] for each in history]
    style: dict[str, Any] = {"linewidth": 1.6, "marker": "o", "markersize": 2.5}
    left.plot(epochs, [each["loss"] for each in history], color="#334155", **style)
    left.set_title("training loss", fontsize=9, loc="left")
    structures = dict(history[0].get("structures") or {})
    for k, name in enumerate(structures):
        dice = [each["structures"][name] for each in history]
        right.plot(epochs, dice, color=_hexadecimal(k), label=name, **style)
    if len(structures) != 1:
        mean = [each["validation_dice"] for each in history]
        right.plot(epochs, mean, color="#0f172a", linestyle="dashed", label="mean", linewidth=1.2)
    right.set_title("validation Dice", fontsize=9, loc="left")
    right.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    for axes in (left, right):
        axes.set_xlabel("epoch", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(linewidth=0.4, alpha=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"


def _hexadecimal(structure: int) -> str:
    return f"#{bytes(colour(structure + 1)).hex()}"
