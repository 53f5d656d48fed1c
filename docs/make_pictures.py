"""Draw docs/pictures/search.jpg and demo.jpg: the search page and the demo page, in a headless Chromium.

    python docs/make_pictures.py runs/train_dual_encoder/1 runs/train_medklip/1

The runs are default ones; what is shown are their synthetic test images, never anybody's radiograph.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from hf_medvlm import load
from hf_medvlm.__main__ import main as hf_medvlm
from hf_medvlm.inference.demo import Demo, make_server

PICTURES, SIZE = Path(__file__).parent / "pictures", (1280, 1066)


def keep(driver: Any, name: str) -> None:
    """The window as a small JPEG."""
    shot = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    shot.resize((SIZE[0] // 2, SIZE[1] // 2), Image.Resampling.LANCZOS).save(PICTURES / name, quality=85)
    print(PICTURES / name, (PICTURES / name).stat().st_size, "bytes")


def synthetic_images(run: str, most: int = 60) -> list[Path]:
    """The first test images of a run on synthetic studies.

    Raises:
        ValueError: it was trained on other data.
    """
    info = json.loads((Path(run) / "run.json").read_text(encoding="utf-8"))
    if info["dataset"] != "synthetic":
        raise ValueError(f"{run} was trained on {info['dataset']}; only synthetic images may be shown")
    lines = (Path(run) / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[:most]
    return [Path(info["image_folder"], json.loads(line)["images"][0]) for line in lines]


def main(encoder: str, finder: str) -> None:
    options = webdriver.ChromeOptions()
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "hide-scrollbars", f"window-size={SIZE[0]},{SIZE[1]}"):
        options.add_argument(f"--{flag}")
    with tempfile.TemporaryDirectory() as folder, webdriver.Chrome(options=options) as driver:
        images = Path(folder, "images")
        images.mkdir()
        for path in synthetic_images(encoder):
            (images / path.name).symlink_to(path)
        hf_medvlm(["index", encoder, str(images), "--out", f"{folder}/index"])
        hf_medvlm(["search", f"{folder}/index", "severe cardiomegaly"])
        driver.get(Path(folder, "index", "search.html").as_uri())
        keep(driver, "search.jpg")
        server = make_server(Demo(load(finder)), 0)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            driver.get(f"http://127.0.0.1:{server.server_address[1]}/")
            driver.find_element(By.ID, "file").send_keys(str(synthetic_images(finder)[1]))
            status = driver.find_element(By.ID, "status")
            WebDriverWait(driver, 240).until(lambda _: status.text == "Done.")
            driver.find_element(By.ID, "phrase").send_keys("pleural effusion")
            driver.find_element(By.ID, "ground").submit()
            WebDriverWait(driver, 240).until(lambda d: d.find_element(By.ID, "heat").is_displayed())
            keep(driver, "demo.jpg")
        finally:
            server.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
