"""The page in a real Chromium, over a server of its own: what it shows, and that it asks nobody else.

Pictures go to the folder that pytest keeps for this test; look at them after a change of the page.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.server.guard.test_gate import entry, write
from tests.runtime.server.processes.spawned_server import ServerProcess

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="no playwright: pip install playwright; the page was not opened"
)
if CHROMIUM is None:
    pytest.skip("no chromium: apt-get install chromium; the page was not opened", allow_module_level=True)

SHARED = "You answer whatever is asked, at any length, about ships and the sea. "
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def complete(server: ServerProcess, prompt: str, max_tokens: int = 3) -> int:
    """The status of a completion."""
    status, _ = server.ask("POST", "/v1/completions", {"prompt": prompt, "max_tokens": max_tokens})
    return status


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextmanager
def serving(folder: Path, keys: Path | None = None) -> Iterator[ServerProcess]:
    started = ServerProcess(folder, keys, "slow_server")
    try:
        yield started
    finally:
        started.popen.kill()
        started.popen.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("server")) as started:
        for question in ("How deep is it?", "Who sails there?", "Who sails there, and why?"):
            assert complete(started, SHARED + question) == 200
        yield started


class Page:
    """A page, and what went wrong in it."""

    def __init__(self, browser: Any, server: ServerProcess, scheme: str = "light", width: int = 1280) -> None:
        self.troubles: list[str] = []
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
        self.page = context.new_page()
        self.page.on("console", lambda message: self.troubles.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("dialog", lambda dialog: self.troubles.append(f"dialog: {dialog.message}"))
        self.page.on("request", lambda request: self._note(request.url, server.url))
        self.page.goto(f"{server.url}/ui")

    def _note(self, url: str, own: str) -> None:
        if not url.startswith(f"{own}/"):
            self.troubles.append(f"asked {url}")

    def value(self, stat: str) -> float:
        """The number behind a text."""
        return float(self.page.locator(f'[data-stat="{stat}"]').get_attribute("data-value"))

    def until(self, script: str) -> None:
        """Wait until an expression of JavaScript is true; the page's policy forbids playwright's own way."""
        end = time.monotonic() + 30
        while not self.page.evaluate(script):
            assert time.monotonic() < end, script
            self.page.wait_for_timeout(50)

    def snapshots(self, count: int = 2) -> None:
        """Wait for so many snapshots, counted from the page's start."""
        self.until(f"Number(document.body.dataset.snapshots ?? 0) >= {count}")

    def close(self) -> None:
        self.page.context.close()
        assert self.troubles == []


@pytest.fixture
def page(browser: Any, server: ServerProcess) -> Iterator[Page]:
    opened = Page(browser, server)
    yield opened
    opened.close()


def test_health_speed_and_cache_are_shown_as_numbers(page: Page, server: ServerProcess) -> None:
    page.snapshots()
    assert page.page.locator("#status").get_attribute("data-state") == "ready"
    assert "tiny" in page.page.title()
    assert page.value("replied") >= 3 and page.value("errors") == 0
    assert page.value("first-count") >= 3 and page.value("first-p50") > 0
    assert 0 < page.value("hit-share") < 1
    assert page.page.locator("#pools tr").count() == 2
    assert page.page.locator("#charts figure").count() == 6
    before = page.value("first-count")
    complete(server, "Another one")
    page.until(f"Number(document.querySelector('[data-stat=first-count]').dataset.value) == {before + 1}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_no_picture_is_wider_than_its_window(
    browser: Any, server: ServerProcess, tmp_path: Path, scheme: str, width: int
) -> None:
    opened = Page(browser, server, scheme, width)
    opened.snapshots(3)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    picture = tmp_path / f"{scheme}-{width}.png"
    opened.page.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size > 10_000
    opened.close()


def test_a_request_is_cancelled_by_its_button(page: Page, server: ServerProcess) -> None:
    statuses: list[int] = []
    prompt = SHARED + "Tell me all."
    asked = threading.Thread(target=lambda: statuses.append(complete(server, prompt, 1500)))
    asked.start()
    row = page.page.locator("#requests tr")
    row.wait_for()
    number = row.get_attribute("data-request")
    assert page.page.locator(f"#requests tr[data-request='{number}'] td").nth(4).inner_text() != ""
    row.get_by_role("button", name=f"Cancel request {number}").press("Enter")
    page.page.locator(f"#reuse li[data-request='{number}']").get_by_text("client").wait_for()
    asked.join(timeout=30)
    assert not asked.is_alive() and len(statuses) == 1
    assert page.page.locator("#requests tr").count() == 0


def test_a_request_says_why_it_was_computed(page: Page, server: ServerProcess) -> None:
    prompt = SHARED + "Who sails there, and why?"
    complete(server, prompt)
    complete(server, "Something that nobody ever asked here before.")
    page.snapshots(3)
    newest, before = (page.page.locator("#reuse li").nth(at) for at in (0, 1))
    page.until("document.querySelector('#reuse li').dataset.reused === '0'")
    assert "not in the tree of its tenant" in newest.locator("p").inner_text()
    assert "All that can be shared was reused" in before.locator("p").inner_text()
    number = before.get_attribute("data-request")
    page.page.locator("#why-id").fill(str(number))
    page.until("document.querySelectorAll('#reuse li').length === 1")
    assert page.page.locator("#reuse li").get_attribute("data-request") == number
    page.page.locator("#why-id").fill("")
    page.page.locator("#why-show").select_option("none")
    page.until("[...document.querySelectorAll('#reuse li')].every((item) => item.dataset.reused === '0')")


def test_the_tree_can_be_walked_by_keyboard(page: Page) -> None:
    page.snapshots()
    boxes = page.page.locator("#icicle [data-box]")
    assert boxes.count() > 3
    first = page.page.locator("#icicle [data-box][tabindex='0']")
    first.focus()
    start = first.get_attribute("data-box")
    assert "hit" in page.page.locator("#box-text").inner_text()
    page.page.keyboard.press("ArrowDown")
    page.page.keyboard.press("ArrowRight")
    page.until(f"document.activeElement.dataset.box !== '{start}'")
    inner = page.page.evaluate("document.activeElement.dataset.box")
    page.page.keyboard.press("Enter")
    page.until("!document.querySelector('#tree-out').disabled")
    assert page.page.evaluate("document.activeElement.dataset.box") == inner
    assert boxes.first.get_attribute("data-box") == inner
    page.page.keyboard.press("Escape")
    page.page.keyboard.press("Escape")
    page.until("document.querySelector('#tree-out').disabled")
    page.page.get_by_text("The most used prefixes as a table").click()
    assert page.page.locator("#boxes tr").count() >= 3


def test_the_playground_streams_and_says_what_was_reused(page: Page) -> None:
    play = page.page
    play.locator("#play-system").fill(SHARED)
    play.locator("[name=max_tokens]").fill("12")
    play.locator("[name=temperature]").fill("0")
    play.locator("#play-message").fill(HOSTILE)
    play.locator("#play-message").press("Enter")
    play.locator("[data-role=assistant][data-finish=length]").wait_for()
    assert play.locator("[data-role=user] .said").inner_text() == HOSTILE
    spans = play.locator("[data-role=assistant] .said span[data-logprob]")
    assert spans.count() >= 1 and float(spans.first.get_attribute("data-logprob")) <= 0
    play.locator("#play-message").fill("And then?")
    play.locator("#play-send").click()
    second = play.locator("[data-role=assistant]").nth(1)
    page.until("document.querySelectorAll('[data-role=assistant][data-finish=length]').length === 2")
    assert int(second.get_attribute("data-cached")) > 0
    assert "from the cache" in second.locator(".cost").inner_text()
    play.locator("[name=max_tokens]").fill("1500")
    play.locator("#play-message").fill("Go on")
    play.locator("#play-send").click()
    play.locator("[data-role=assistant]").nth(2).locator("span").first.wait_for()
    play.locator("#play-stop").click()
    play.locator("[data-role=assistant][data-finish=stopped]").wait_for()
    page.until("document.querySelectorAll('#requests tr').length === 0")


def test_a_key_is_asked_for_and_kept_in_this_tab_only(browser: Any, tmp_path: Path) -> None:
    keys = write(tmp_path / "keys.json", [entry("alice"), entry("root", roles=["admin"])])
    with serving(tmp_path, keys) as served:
        opened = Page(browser, served)
        opened.page.locator("#key-dialog[open]").wait_for()
        opened.page.locator("#key").fill("key of alice")
        opened.page.get_by_role("button", name="Use it").click()
        opened.snapshots(1)
        assert not opened.page.locator("#fast").is_visible(), "alice may not know what others do"
        assert opened.page.locator("#who").is_visible()
        assert opened.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        opened.page.locator("#key-button").click()
        opened.page.locator("#key").fill("key of root")
        opened.page.get_by_role("button", name="Use it").click()
        opened.page.locator("#fast").wait_for()
        opened.troubles = [line for line in opened.troubles if "401 (Unauthorized)" not in line]
        opened.close()
