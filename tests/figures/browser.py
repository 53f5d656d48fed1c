"""A headless Chromium for the page tests; a test that asks for it skips, saying why, where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def chromium(width: int = 1280, height: int = 1000) -> Iterator:
    """A selenium driver of Debian's `chromium` and `chromium-driver`, which log what the page's console said."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="the page tests need `pip install selenium`")
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if None in programs:
        pytest.skip("the page tests need chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", f"window-size={width},{height}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    try:
        yield driver
    finally:
        driver.quit()


def console(driver) -> list[str]:
    """What the page's console said since the last call: errors, warnings, and policy violations."""
    return [entry["message"] for entry in driver.get_log("browser")]
