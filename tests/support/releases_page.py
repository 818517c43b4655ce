"""The Releases page in a browser: the steps of a user, and errors that the browser reports."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from playwright.sync_api import FrameLocator, Locator, Page, expect

TRANSPARENT = "rgba(0, 0, 0, 0)"


def collect_errors(page: Page, path: str = "/fmnist/") -> list[str]:
    """Return a list that collects all later errors of the Releases page, such as violations of its content policy.

    `path` is part of the address of each file with an error.
    """
    errors: list[str] = []

    def collect(kind: str, text: str, url: str) -> None:
        if kind == "error" and path in url + text:
            errors.append(text)

    page.on("console", lambda message: collect(message.type, message.text, message.location["url"]))
    page.on("pageerror", lambda error: collect("error", f"{error} {error.stack}", ""))
    return errors


def make_noise() -> bytes:
    """A PNG of uniform noise, which is out of distribution."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def find_champion_card(registry: Page | FrameLocator) -> Locator:
    """The card on the Releases page that shows the champion."""
    return registry.get_by_role("region", name="Champion", exact=True)


def use_page(registry: Page | FrameLocator, current: str, earlier: str) -> None:
    """Start on the Releases page and check its style, upload an image, then roll back to an earlier release."""
    expect(find_champion_card(registry)).to_contain_text(current)
    expect(registry.locator("nav")).to_have_css("display", "flex")  # waits for the style sheet
    registry.get_by_role("link", name="Try it").click()
    expect(registry.locator("#upload")).to_be_enabled()  # by the page's script
    registry.locator("#upload").set_input_files({"name": "noise.png", "mimeType": "image/png", "buffer": make_noise()})
    expect(registry.get_by_role("heading", name="not a pattern")).to_be_visible()
    registry.get_by_role("link", name="Releases").click()
    registry.locator(f"tbody a[href$='/releases/{earlier}']").first.click()
    registry.get_by_label("Reason for the rollback").fill("the other one was better")
    registry.get_by_role("button", name="Roll back to this release").click()
    expect(find_champion_card(registry)).to_contain_text(earlier)
    badges = [registry.locator(".badge", has_text=text).first for text in ("champion", "withdrawn")]
    for badge in badges:
        expect(badge).not_to_have_css("background-color", TRANSPARENT)  # waits for the style sheet
    assert len({badge.evaluate("element => getComputedStyle(element).backgroundColor") for badge in badges}) == 2
