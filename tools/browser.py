"""A JupyterLab in a headless Chromium: open a lesson, run it, and move its sliders by keyboard.

The tests in tests/browser and the timings in benchmarks/panels.py share it.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from nbformat import NotebookNode, from_dict
from playwright.sync_api import Locator, Page, TimeoutError, sync_playwright

NO_CHROMIUM = (
    "No Chromium or Chrome was found, so no slider can be moved in a browser. Install one (Debian and Ubuntu: "
    "sudo apt install chromium; macOS: brew install --cask chromium; Windows: Google Chrome) and try again."
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Galata, JupyterLab's own test kit, lays the application open to a script in the page. It also opens the server to
# everyone, which we take back: a token guards it, and it listens to this machine alone.
SERVER_SETTINGS = """
from jupyterlab.galata import configure_jupyter_server

configure_jupyter_server(c)
c.ServerApp.ip = "127.0.0.1"
c.ServerApp.port = {port}
c.ServerApp.root_dir = {folder!r}
c.ServerApp.allow_root = True
c.ServerApp.terminals_enabled = False
c.IdentityProvider.token = {token!r}
c.LabApp.news_url = None
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
"""
# A slider's way to the picture: the key goes down, the kernel draws, the new picture has been decoded and painted.
WATCH_PICTURES = """() => {
    window.qsal = {pressed: 0, painted: [], errors: []};
    document.addEventListener("keydown", () => { window.qsal.pressed = performance.now(); }, true);
    new MutationObserver(changes => {
        for (const {target} of changes) {
            target.decode().then(() => requestAnimationFrame(() => {
                window.qsal.painted.push([target.src, performance.now() - window.qsal.pressed]);
            }), () => {});
        }
    }).observe(document.body, {subtree: true, attributes: true, attributeFilter: ["src"]});
}"""
# A promise of JupyterLab's that is never kept, as when a kernel is not heard from, would be waited for without end.
WITHIN = """(seconds, what, promise) => Promise.race([promise, new Promise((_, reject) => {
    setTimeout(() => reject(new Error(`${what} took more than ${seconds} seconds`)), 1000 * seconds);
})])"""
OPEN = f"""async ([name, seconds]) => {{
    const within = {WITHIN};
    const app = window.jupyterapp;
    await within(seconds, "restoring JupyterLab", app.restored);
    const opening = app.commands.execute("docmanager:open", {{path: name, factory: "Notebook"}});
    const panel = await within(seconds, "opening the notebook", opening);
    await within(seconds, "showing the notebook", panel.revealed);
    await within(seconds, "starting its kernel", panel.sessionContext.ready);
    window.qsalPanel = panel;
    panel.sessionContext.iopubMessage.connect((_, message) => {{
        if (message.header.msg_type === "error") {{
            window.qsal.errors.push(`${{message.content.ename}}: ${{message.content.evalue}}`);
        }}
    }});
}}"""
RUN = """() => {
    window.qsalDone = false;
    window.jupyterapp.commands.execute("notebook:run-all-cells").finally(() => { window.qsalDone = true; });
}"""
RUN_CODE = f"""async ([code, seconds]) => {{
    const within = {WITHIN};
    let text = "";
    const future = window.qsalPanel.sessionContext.session.kernel.requestExecute({{code, store_history: false}});
    future.onIOPub = message => {{ text += message.header.msg_type === "stream" ? message.content.text : ""; }};
    await within(seconds, "running the code", future.done);
    return text;
}}"""
CLOSE = f"""async seconds => {{
    const within = {WITHIN};
    await within(seconds, "ending the kernel", window.qsalPanel.sessionContext.shutdown());
    window.qsalPanel.dispose();
}}"""


class Panel(NamedTuple):
    """One of the course's panels on a page: the handles of its sliders, its picture and its error message."""

    handles: list[Locator]
    picture: Locator
    message: Locator


def find_chromium() -> str | None:
    """Return the path of a Chromium or Chrome on this machine."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    places = [
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    ]
    found = [path for name in names if (path := shutil.which(name))]
    return next(iter(found + [place for place in places if Path(place).exists()]), None)


@contextmanager
def lab_server(folder: Path, scale: str) -> Iterator[str]:
    """Serve `folder` with JupyterLab on this machine; yield the address, which ends in a token.

    The kernels run at `scale`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as private:
        token, home = os.urandom(16).hex(), Path(private)
        settings = home / "jupyter_server_config.py"
        settings.write_text(SERVER_SETTINGS.format(port=port, folder=str(folder), token=token), encoding="utf-8")
        # The user's own JupyterLab settings stay out of it.
        folders = {f"JUPYTER{name}": private for name in ("_CONFIG_DIR", "_RUNTIME_DIR", "LAB_SETTINGS_DIR")}
        command = [sys.executable, "-m", "jupyterlab", f"--config={settings}", "--no-browser"]
        log = home / "server.log"
        with log.open("w") as output:
            server = subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | folders | {"QSAL_SCALE": scale, "TMPDIR": private},
                stdout=output,
                stderr=output,
            )
        try:
            _wait_for(f"http://127.0.0.1:{port}/api?token={token}", server, log)
            yield f"http://127.0.0.1:{port}/lab?token={token}"
        finally:
            server.terminate()
            try:
                server.wait(timeout=60)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait_for(address: str, server: subprocess.Popen, log: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


@contextmanager
def chromium_page(executable: str) -> Iterator[Page]:
    """Start a headless Chromium with a profile of its own, which goes away with it; yield its page."""
    with sync_playwright() as playwright, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=executable, headless=True, args=FLAGS, viewport={"width": 1280, "height": 1000}
        )
        try:
            yield context.pages[0]
        finally:
            context.close()


@contextmanager
def lesson(page: Page, address: str, name: str, seconds: float = 120) -> Iterator[None]:
    """Open the notebook `name` with a kernel in a workspace of its own; in the end close it and end its kernel.

    Raises
    ------
    playwright.sync_api.Error
        JupyterLab took more than `seconds` over a step; the message names it.
    """
    home, _, token = address.partition("?")
    page.goto(f"{home}/workspaces/{Path(name).stem}?{token}&reset")
    page.wait_for_function("() => window.jupyterapp !== undefined", timeout=1000 * seconds)
    page.evaluate(WATCH_PICTURES)
    page.evaluate(OPEN, [name, seconds])
    yield
    page.evaluate(CLOSE, seconds)


def run_all(page: Page, seconds: float = 240) -> None:
    """Run all cells of the open notebook from top to bottom and wait until the last one is done."""
    page.evaluate(RUN)
    page.wait_for_function("() => window.qsalDone", timeout=1000 * seconds)


def run_code(page: Page, code: str, seconds: float = 120) -> str:
    """Run code in the open notebook's kernel, outside of its cells, and return what it prints."""
    return page.evaluate(RUN_CODE, [code, seconds])


def kernel_errors(page: Page) -> list[str]:
    """Return every error that the kernel has reported since the notebook was opened, from cells and from sliders."""
    return page.evaluate("() => window.qsal.errors")


def content(page: Page) -> NotebookNode:
    """Return the open notebook as it stands in the page, outputs included."""
    return from_dict(page.evaluate("() => window.qsalPanel.context.model.toJSON()"))


def show_cell(page: Page, number: int) -> None:
    """Scroll to the cell of that number, from 0: JupyterLab builds cells that were never seen only then."""
    page.evaluate("number => window.qsalPanel.content.scrollToItem(number, 'center')", number)


def panels(page: Page) -> list[Panel]:
    """Return the panels of the course that the open notebook shows, in order, each scrolled into view once."""
    found = []
    for number, cell in enumerate(content(page).cells):
        # A panel is a VBox; progress bars are an HBox, and go away when they are done.
        if any(output.get("data", {}).get("text/plain", "").startswith("VBox(") for output in cell.get("outputs", [])):
            show_cell(page, number)
            box = page.locator(f'.jp-Cell[data-windowed-list-index="{number}"] .widget-vbox:has(> .qsal-error)')
            box.locator("img").wait_for(timeout=30_000)
            handles = box.locator(".noUi-handle").all()
            found.append(Panel(handles, box.locator("img"), box.locator("> .qsal-error")))
    return found


def label(handle: Locator) -> str:
    """Return the label of a handle's slider."""
    return handle.locator("xpath=ancestor::*[contains(@class, 'widget-inline-hbox')][1]//label").inner_text()


def press(page: Page, panel: Panel, handle: Locator, key: str, seconds: float) -> float | None:
    """Press `key` on a handle; return the milliseconds until the new picture is painted, or None if none comes."""
    handle.focus()
    before = panel.picture.get_attribute("src")
    page.evaluate("() => { window.qsal.painted = []; }")
    page.keyboard.press(key)
    try:
        painted: Any = page.wait_for_function(
            "before => window.qsal.painted.find(([src]) => src !== before)", arg=before, timeout=1000 * seconds
        )
    except TimeoutError:
        return None
    return painted.json_value()[1]
