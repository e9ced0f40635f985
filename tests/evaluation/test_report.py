"""The page of a run: what it shows, that it is whole in itself, and how it is used."""

import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adapterkit.data.collections.collection import Collection
from adapterkit.data.dataset import LabelledImage, SegmentationDataset
from adapterkit.evaluation.drawings import Drawings, draw_large
from adapterkit.evaluation.evaluation import evaluate, predict
from adapterkit.evaluation.report import Contents, write_report
from adapterkit.evaluation.tables import extremes
from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.protocol import Embedding, Masks, Promptable

HOSTILE = "<script>alert('it & \"that\"')</script>"


@dataclass(frozen=True)
class Drawn:
    """A record that is drawn, of two structures, one with a hostile name."""

    index: int
    colour: bool = False

    @property
    def name(self) -> str:
        return f"{self.index} {HOSTILE}"

    @property
    def structures(self) -> dict[int, str]:
        return {1: "disc", 2: HOSTILE}

    @property
    def attributes(self) -> dict[str, str]:
        group = f"patient{self.index // 2}"
        return {"view": f"{'ab'[self.index % 2]}<i>", "group": group}

    def read(self) -> LabelledImage:
        draw = np.random.default_rng(self.index)
        rows, columns = np.mgrid[:48, :96]
        labels = np.zeros((48, 96), np.uint8)
        for label in (1, 2):
            y, x = draw.uniform(12, 36), draw.uniform(48 * label - 36, 48 * label - 12)
            labels[np.hypot(rows - y, columns - x) < 8] = label
        image = 60 * labels + draw.integers(0, 60, labels.shape)
        if self.colour:
            image = np.stack([image, image // 2, image], axis=-1)
        return LabelledImage(image.astype(np.uint8), labels, (1.0, 0.5))


class Shifted(Promptable):
    """Predicts the references, each image's shifted by its number, of what it is given."""

    def __init__(self, masks: Tensor):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.masks, self.seen = masks, 0

    def encode(self, images: Tensor, frames: int = 1) -> Embedding:
        return Embedding(images, images.shape[-1])

    def decode(self, embedding: Embedding, prompts: Prompts | None = None) -> Masks:
        chosen = [(self.seen + i) % len(self.masks) for i in range(len(embedding))]
        self.seen += len(embedding)
        masks = torch.stack([self.masks[i].roll(i % 5, dims=-1) for i in chosen])
        logits = 20.0 * masks[:, :, None].float() - 10
        return Masks(logits, torch.zeros(logits.shape[:3]), masks.shape[-1])


def contents(count: int, size: int = 64, colour: bool = False) -> Contents:
    records = [Drawn(index, colour) for index in range(count)]
    collection = Collection("drawn", "drawn", tuple(records), ("g",) * count)
    dataset = SegmentationDataset(collection.records, size)
    masks = torch.stack([dataset[i]["masks"] for i in range(count)]).bool()
    drawings = Drawings(dataset)
    main = evaluate(Shifted(masks), dataset, seed=0, show=[drawings.draw])
    large = {index for of_each in extremes(main) for index in of_each.values()}
    singly = enumerate(predict(Shifted(masks), dataset, seed=0, batch_size=1))
    cases = draw_large(dataset, {index: each for index, each in singly if index in large})
    history = [
        {"epoch": epoch, "loss": 1 / epoch, "validation_dice": 0.5,
         "structures": dict.fromkeys(main.structures, 0.5)}
        for epoch in (1, 2)
    ]  # fmt: skip
    return Contents(
        title=f"{HOSTILE} on drawn",
        setting={"base": HOSTILE},
        evaluations={f"zero {HOSTILE}": main, "trained": main},
        main=main,
        history=history,
        reported=["view"],
        images=drawings.of_all(),
        cases=cases,
    )


class Elements(HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_whole_in_itself_and_names_are_escaped(tmp_path: Path):
    write_report(tmp_path / "report.html", contents(6))
    page = (tmp_path / "report.html").read_text()
    elements = Elements(page)
    tags = [tag for tag, _ in elements.found]
    assert tags.count("script") == 1
    assert "i" in tags  # Swatches; those of the hostile view would have none of their class.
    assert all("class" in attributes for tag, attributes in elements.found if tag == "i")
    assert HOSTILE in "".join(elements.text)
    sources = [v for _, a in elements.found for k, v in a.items() if k in ("src", "href")]
    assert sources
    assert all(source and source.startswith("data:image/") for source in sources)
    assert "http" not in page.replace("http://www.w3.org", "")
    # A drawing for each image, and three cases of each of two structures, in their proportions.
    drawings = [a for tag, a in elements.found if tag == "svg" and "viewbox" in a and "role" in a]
    assert len(drawings) == 6 + 6
    assert {a["style"] for a in drawings} == {"aspect-ratio:1.000"}
    paths = [a["class"] for tag, a in elements.found if tag == "path" and "class" in a]
    for kind in ("reference s0", "reference s1", "predicted s0", "predicted s1"):
        assert paths.count(kind) == 12
    for text in ("Every test image", "patient0", "worst", "±"):
        assert text in page


@pytest.mark.parametrize("colour", [False, True])
def test_two_hundred_images_stay_below_five_megabytes(tmp_path: Path, colour: bool):
    write_report(tmp_path / "report.html", contents(200, size=256, colour=colour))
    assert (tmp_path / "report.html").stat().st_size < 5e6


def test_an_outline_follows_its_mask():
    drawn = contents(3, size=64)
    numbers = re.findall(r"([\d.]+),([\d.]+)", drawn.images[0].reference[0])
    found = np.array(numbers, float)
    labels = SegmentationDataset([Drawn(0)], 64)[0]["masks"][0].numpy()
    rows, columns = np.nonzero(labels)
    for axis, places in enumerate((columns, rows)):
        assert abs(found[:, axis].min() - places.min()) < 0.6
        assert abs(found[:, axis].max() - places.max() - 1) < 0.6


def test_the_list_is_sorted_filtered_and_enlarged(tmp_path: Path, browser: Any):
    write_report(tmp_path / "report.html", contents(6))
    tab = browser.new_page()
    failures: list[str] = []
    tab.on("pageerror", lambda error: failures.append(str(error)))
    tab.goto(f"file://{tmp_path / 'report.html'}")

    def column(index: int) -> list[str]:
        cells = tab.locator(f"#images tbody tr:not([hidden]) td:nth-child({index + 1})")
        return cells.all_inner_texts()

    heads = tab.locator("#images th").all_inner_texts()
    mean = heads.index("mean Dice")
    button = tab.locator("#images th button").nth(mean - 1)
    button.click()
    assert column(mean) == sorted(column(mean))
    button.click()
    assert column(mean) == sorted(column(mean), reverse=True)
    tab.locator("#filter").fill("PATIENT1")
    assert column(heads.index("group")) == ["patient1", "patient1"]
    assert tab.locator("#count").inner_text() == "2 of 6 images"
    tab.locator("#images tr:not([hidden]) .drawing").first.click()
    assert HOSTILE in tab.locator("dialog[open] p").inner_text()
    tab.keyboard.press("Escape")
    tab.locator("#show-predicted").uncheck()
    assert not tab.locator("#images path.predicted").first.is_visible()
    assert failures == []
    tab.close()
