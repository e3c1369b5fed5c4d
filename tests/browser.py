"""A headless Chromium for tests of the page, and what they look at in it."""

import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

T = TypeVar("T")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
REQUIRED = "LCT_REQUIRE_BROWSER"
INSTALL = "no Chromium with its driver: apt-get install chromium chromium-driver"


def find_browser() -> tuple[str, str] | None:
    """The browser and its driver, where both are installed."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def open_chromium() -> Generator[Chrome]:
    """Skips the test where there is no Chromium, or fails it where `LCT_REQUIRE_BROWSER` is set."""
    found = find_browser()
    if found is None:
        if os.environ.get(REQUIRED):
            pytest.fail(INSTALL)
        pytest.skip(INSTALL)
    options = ChromeOptions()
    options.binary_location = found[0]
    for argument in ("headless=new", "disable-dev-shm-usage", "hide-scrollbars", "no-first-run"):
        options.add_argument(f"--{argument}")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium's own does not start for root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(found[1]))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """The page in a tab of its own."""

    def __init__(self, driver: Chrome, url: str) -> None:
        self.driver, self.url = driver, url

    def open(self) -> None:
        self.resize(1280, 1000)
        self.devtools("Emulation.setFocusEmulationEnabled", enabled=True)  # the clipboard wants it
        self.driver.get(self.url)
        self.wait(lambda: self.text("card") != "Loading…")

    def by_id(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def text(self, name: str) -> str:
        """All text of an element, whether it is seen or only heard."""
        return str(self.by_id(name).get_property("textContent")).strip()

    def shows(self, name: str) -> bool:
        return self.by_id(name).is_displayed()

    def has_class(self, name: str, kind: str) -> bool:
        return kind in str(self.by_id(name).get_attribute("class")).split()

    def wait(self, condition: Callable[[], T], seconds: float = 20) -> T:
        waiter = WebDriverWait(
            self.driver,
            seconds,
            poll_frequency=0.05,
            ignored_exceptions=[StaleElementReferenceException, IndexError],
        )
        return waiter.until(lambda _: condition())

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def run_async(self, script: str, *arguments: object) -> Any:
        """The value that a promise made by `script`, the body of an async function, comes to."""
        body = f"""
            const done = arguments[arguments.length - 1];
            (async (...args) => {{ {script} }})(...arguments)
              .then((value) => done({{ value }}), (error) => done({{ error: String(error) }}));
        """
        outcome = self.driver.execute_async_script(body, *arguments)
        assert "error" not in outcome, outcome["error"]
        return outcome.get("value")

    def devtools(self, command: str, **parameters: object) -> Any:
        return self.driver.execute_cdp_cmd(command, parameters)

    def resize(self, width: int, height: int = 900, *, scale: float = 1) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=False,
        )  # fmt: skip

    def prefer(self, **media: str) -> None:
        """Media features of the reader, as `color_scheme="dark"`."""
        features = [
            {"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in media.items()
        ]
        self.devtools("Emulation.setEmulatedMedia", features=features)

    def choose(self, file: Path) -> None:
        self.by_id("file").send_keys(str(file))

    def choose_sample(self, label: str) -> None:
        self.driver.find_element(By.CSS_SELECTOR, f'.samples img[alt="{label}"]').click()

    def predictions(self) -> list[tuple[str, str]]:
        """The bars' labels and percentages, once the answer is there."""
        self.wait(lambda: self.shows("answer") and not self.by_id("result").get_attribute("aria-busy"))
        rows = self.by_id("bars").find_elements(By.TAG_NAME, "li")
        return [
            (row.find_element(By.CLASS_NAME, "label").text, row.find_element(By.CLASS_NAME, "value").text)
            for row in rows
        ]

    def failure(self) -> str:
        """What the error says, once there is one."""
        self.wait(lambda: self.text("error"))
        return self.by_id("error").text

    def complaints(self) -> list[str]:
        """What the browser logged, but for the refused requests that it always notes."""
        entries = self.driver.get_log("browser")  # pyright: ignore[reportUnknownMemberType]
        return [entry["message"] for entry in entries if entry["source"] != "network"]
