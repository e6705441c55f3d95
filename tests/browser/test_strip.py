"""A thousand pictures: sent as they come into view, each with its name, and chosen with mouse or keys."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from playwright.sync_api import expect

from tests.browser.lab import Notebook
from tests.browser.test_explorer import kernel, ready

THOUSAND = """
import nbviz, torch, json, numpy as np
photographs = np.stack([np.asarray(picture.resize((128, 96))) for picture in nbviz.bundled.pictures()])
images = torch.from_numpy(photographs).permute(0, 3, 1, 2).repeat(250, 1, 1, 1) / 255
images[999] = torch.tensor([1.0, 0, 0])[:, None, None]
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
view = nbviz.FeatureMaps(net, images, layer="1")
view
"""


def test_pictures_come_as_they_come_into_view(notebook: Callable[..., Notebook]) -> None:
    book = notebook([THOUSAND])
    widget = ready(book)
    buttons = widget.locator(".nbviz-thumbs button")
    expect(buttons).to_have_count(1000)
    names = buttons.evaluate_all("all => all.map(button => button.getAttribute('aria-label'))")
    assert all(names)
    received = sum(sum(message.buffer_sizes) for message in book.kernel_replies)
    print(f"{received / 1000:.0f} kB to open 1,000 pictures")
    assert received < 1_000_000
    drawn = widget.locator(".nbviz-thumbs canvas[data-drawn]")
    expect(drawn).to_have_count(16)
    # By keys: from the chosen one to the last, which comes into view, and is chosen.
    buttons.first.focus()
    book.page.keyboard.press("ArrowRight")
    expect(buttons.nth(1)).to_be_focused()
    book.page.keyboard.press("ArrowDown")
    expect(buttons.nth(3)).to_be_focused()
    book.page.keyboard.press("End")
    expect(buttons.last).to_be_focused()
    expect(buttons.last).to_be_in_viewport()
    expect(buttons.last.locator("canvas")).to_have_attribute("data-drawn", "true")
    red = book.pixels(buttons.last.locator("canvas"))[..., :3].reshape(-1, 3).astype(int)
    assert np.abs(red - [255, 0, 0]).max() < 6
    book.page.keyboard.press("Enter")
    expect(buttons.last).to_have_attribute("aria-pressed", "true")
    ready(book)
    assert kernel(book, "view.picture") == 999
    assert drawn.count() < 100
    # One stop for the Tab key.
    assert buttons.evaluate_all("all => all.filter(button => button.tabIndex === 0).length") == 1
    book.screenshot("thousand.png", widget)
    book.set_theme("dark")
    book.screenshot("thousand-dark.png", widget)
