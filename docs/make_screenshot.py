"""Serve the demo, classify a sample on the page and save what a reader sees to docs/page.png.

`make screenshot`; it needs Chromium and its driver, and is looked at, not compared.
"""

import base64
import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from lct_deploy.sample import DEMO_CHECKPOINT
from tests.browser import Page, open_chromium

PICTURE = Path(__file__).with_name("page.png")
SAMPLE = "Coat"
WIDTH, HEIGHT = 1160, 1000


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        bundle = Path(directory) / "demo"
        lct_deploy = [sys.executable, "-m", "lct_deploy"]
        subprocess.run([*lct_deploy, "export", DEMO_CHECKPOINT, "-o", bundle], check=True)  # noqa: S603 - our own
        serve = [*lct_deploy, "serve", bundle, "--port", "0"]
        with (
            subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server,  # noqa: S603 - our own
            open_chromium() as driver,
        ):
            url = server.stdout.readline().strip() if server.stdout else ""
            page = Page(driver, f"{url}/")
            page.open()
            page.resize(WIDTH, HEIGHT)
            for _ in range(20):  # the first answers are slower than all others
                page.choose_sample(SAMPLE)
                page.predictions()
            shot = page.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=True)
            server.terminate()
    image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
