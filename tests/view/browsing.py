"""A page of ours in a real browser, for tests."""

from __future__ import annotations

import shutil
import time
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = [
    *("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run"),
]
PATIENCE = 30.0  # seconds: a machine that draws in software, beside other tests
# Run first, it makes a browser without WebGL: that draws no surface, and is quicker.
FLAT = """
const get = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, ...more) {
  return kind.includes("webgl") ? null : get.call(this, kind, ...more);
};
"""


class Opened:
    """A page that is open in the browser, and what the browser complained of."""

    def __init__(self, page: Any):
        self.page, self.complaints = page, []
        page.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda r: self.complaints.append(r.url) if self._strange(r.url) else None)

    def _strange(self, url: str) -> bool:
        return not (url == self.url or url.startswith(("data:", "blob:")))

    def open(self, output: str) -> Opened:
        self.url = f"file://{output}"
        self.page.goto(self.url)
        self.until("panels.every((panel) => panel.graph._fullLayout) && !waiting.size")
        return self

    def ask(self, expression: str) -> Any:
        return self.page.evaluate(expression)

    def until(self, expression: str) -> None:
        """Wait for it to be true."""
        end = time.monotonic() + PATIENCE
        while not self.ask(expression):
            assert time.monotonic() < end, f"never: {expression}; {self.complaints}"
            self.page.wait_for_timeout(50)

    def at_rest(self, expression: str) -> float:
        """A number, once it changes no more."""
        last, now = None, self.ask(expression)
        while last is None or abs(now - last) > 1e-9:
            self.page.wait_for_timeout(500)
            last, now = now, self.ask(expression)
        return now

    def settle(self) -> None:
        self.until("!waiting.size")

    def point_at(self, panel: int, x: float, y: float) -> None:
        """Move the pointer to these coordinates of a panel of two axes."""
        self.page.locator(".graph").nth(panel).scroll_into_view_if_needed()
        left, top = self.ask(
            f"""(() => {{
              const {{ graph }} = panels[{panel}];
              const {{ xaxis, yaxis }} = graph._fullLayout;
              const box = graph.getBoundingClientRect();
              const within = (axis, v) => axis._offset + Math.min(Math.max(axis.d2p(v), 2), axis._length - 2);
              return [box.x + within(xaxis, {float(x)}), box.y + within(yaxis, {float(y)})];
            }})()"""
        )
        self.page.mouse.move(2, 2)
        self.until("state.hovered === null")
        self.page.mouse.move(left, top)
        self.until("state.hovered !== null")
        self.settle()

    def readout(self) -> dict[str, str]:
        """What the page tells of the current point."""
        rows = self.ask(
            "[...document.querySelectorAll('#readout tr')].map((r) => [...r.children].map((c) => c.textContent))"
        )
        return dict(rows)

    def graph(self, panel: int, expression: str) -> Any:
        return self.ask(f"panels[{panel}].graph.{expression}")

    def choose(self, **controls: Any) -> None:
        """Set controls of these ids as a user does."""
        for name, value in controls.items():
            control = self.page.locator(f"#{name}")
            if value is True:
                control.check()
            elif control.evaluate("c => c.tagName") == "SELECT":
                control.select_option(label=value)
            else:
                control.fill(value)
                control.press("Tab")
