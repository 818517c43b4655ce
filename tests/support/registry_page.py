"""What a person does on the registry page, in a browser."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from playwright.sync_api import FrameLocator, Page, expect


def watch_faults(page: Page) -> list[str]:
    """The faults that the browser finds from now on in the registry page, such as what its policy blocks."""
    faults: list[str] = []

    def note(kind: str, text: str, address: str) -> None:
        if kind == "error" and "/fmnist/" in address + text:
            faults.append(text)

    page.on("console", lambda message: note(message.type, message.text, message.location["url"]))
    page.on("pageerror", lambda error: note("error", f"{error} {error.stack}", ""))
    return faults


def make_noise() -> bytes:
    """A PNG that is not of a garment."""
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)).save(noise, "png")
    return noise.getvalue()


def use_page(shelf: Page | FrameLocator, current: str, earlier: str) -> None:
    """From the overview, which has its style: upload an image, then roll back to an earlier release."""
    expect(shelf.get_by_role("heading", level=1)).to_contain_text(current)
    assert shelf.locator("nav").evaluate("one => getComputedStyle(one).display") == "flex"
    shelf.get_by_role("link", name="Try it").click()
    expect(shelf.locator("#upload")).to_be_enabled()  # by the script
    shelf.locator("#upload").set_input_files({"name": "noise.png", "mimeType": "image/png", "buffer": make_noise()})
    expect(shelf.get_by_role("heading", name="not clothing")).to_be_visible()
    shelf.get_by_role("link", name="Releases").click()
    shelf.locator("tbody").get_by_role("link", name=earlier).first.click()
    shelf.get_by_label("Reason for rolling back").fill("the other one was better")
    shelf.get_by_role("button", name="Make it the champion").click()
    expect(shelf.get_by_role("heading", level=1)).to_contain_text(f"Champion {earlier}")
    badges = (shelf.locator(".badge", has_text=text).first for text in ("champion", "withdrawn"))
    assert len({badge.evaluate("one => getComputedStyle(one).backgroundColor") for badge in badges}) == 2
