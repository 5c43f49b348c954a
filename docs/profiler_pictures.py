"""Pictures of docs/profiler.md from a saved profile: python docs/profiler_pictures.py DIR (needs a Chromium)."""

from __future__ import annotations

import base64
import json
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from tests.profile.browser import Browser, binary

OUT = pathlib.Path(__file__).with_name("profiler")
SECTIONS = {
    "verdict": "#verdict",
    "speedup": "#speedup .charts",
    "acceptance": "#acceptance",
    "costs": "#costs .charts",
    "examples": "#examples",
}
WIDTH = 1000


def main(directory: str) -> None:
    """Opens the page as a reader would and keeps a picture of each section."""
    program = binary()
    assert program is not None, "no Chromium or Chrome on this machine"
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        browser = Browser(program, pathlib.Path(scratch))
        try:
            browser.open(pathlib.Path(directory).resolve() / "report.html", WIDTH)
            for name, place in SECTIONS.items():
                box = browser.ask(f"JSON.stringify(document.querySelector('{place}').getBoundingClientRect())")
                _save(browser, name, box)
        finally:
            browser.close()


def _save(browser: Browser, name: str, box: str) -> None:
    rectangle = json.loads(box)
    rectangle |= {"x": rectangle["x"] - 12, "width": rectangle["width"] + 24}
    clip = {k: rectangle[k] for k in ("x", "y", "width", "height")} | {"scale": 1}
    taken = browser.send("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
    (OUT / f"{name}.png").write_bytes(base64.b64decode(taken["data"]))


if __name__ == "__main__":
    main(sys.argv[1])
