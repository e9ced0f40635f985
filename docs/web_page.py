"""Makes docs/web_page.png: the page of `adapterkit serve` on new SYNTHETIC hearts.

    python docs/web_page.py [ADAPTER]

The masks are those of an adapter, without a click. It is trained for some minutes on other
synthetic hearts, unless one is given. Needs playwright and a Chromium on the PATH.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import adapterkit as ak
from adapterkit.data.synthetic.beat import Beat
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.web.model import Model
from adapterkit.web.server import Service, serving

PATIENTS, EPOCHS, NEW = 46, 20, 6
SHOWN = "patient0005_4CH_half_sequence"
PORT = 7871
PICTURE = Path(__file__).with_name("web_page.png")


def train(folder: Path) -> Path:
    """An adapter that knows left ventricle, myocardium and left atrium."""
    run = ak.train(write_phantom(folder / "known", PATIENTS), epochs=EPOCHS, out=folder / "run")
    assert run is not None
    assert run.adapter is not None
    return run.adapter


def write_hearts(folder: Path) -> Path:
    """Sequences of patients that the adapter has not seen."""
    made = write_phantom(
        folder / "new", NEW, seed=1, beat=Beat(flicker=0.3, dropouts=0, irregular=0)
    )
    images = folder / "echo_study" / "images"
    images.mkdir(parents=True)
    for file in made.rglob("*_half_sequence.nii.gz"):
        shutil.copy(file, images)
    return images.parent


def picture(address: str) -> None:
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 860}, color_scheme="dark")
        for name in ("patient0001_2CH_half_sequence", "patient0001_4CH_half_sequence"):
            tab.goto(f"{address}#{name}")
            tab.wait_for_selector("body.ready:not(.working)")
            tab.keyboard.press("a")
            tab.wait_for_selector(f"[data-id={name}][data-status=accepted]")
        tab.goto(f"{address}#{SHOWN}")
        tab.reload()
        tab.wait_for_selector("body.ready:not(.working)")
        tab.wait_for_selector("#volumes:visible", timeout=300_000)  # All frames of both views.
        tab.wait_for_timeout(1000)
        tab.screenshot(path=PICTURE)
        browser.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        adapter = Path(sys.argv[1]) if len(sys.argv) > 1 else train(folder)
        predictor = ak.Predictor(ak.mini_sam())
        name = predictor.load(adapter, "echo")
        service = Service(
            Model(predictor, {name: adapter}),
            "The small Sam that comes with adapterkit.",
            write_hearts(folder),
            annotator="Anna",
            port=PORT,
        )
        with serving(service) as address:
            picture(address)


if __name__ == "__main__":
    main()
