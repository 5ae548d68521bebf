"""Makes the pictures of the documents (docs/img/*.png) from a real service: python -m tools.screenshots

Starts a service of its own in a temporary home, drives headless Chromium over WebDriver, and ends both.
"""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.http.test_browser import DRIVER, Browser
from tests.servers import free_port

_ROOT = Path(__file__).resolve().parent.parent
_PICTURES = _ROOT / "docs" / "img"
_PASSWORD = "a password for pictures"  # noqa: S105  (of an account that lives for a minute)
_QUESTIONS = ("What is the capital of France?", "And of Italy?")
# The page leaves the temperature to the model; at 0 a picture that is made again shows the same answers.
_GREEDY = """void (window.fetch = ((fetch) => (url, options) => {
  if (options?.body) options.body = JSON.stringify({...JSON.parse(options.body), temperature: 0});
  return fetch(url, options);
})(window.fetch))"""


def _wait(condition: Callable[[], object], what: str, timeout_s: float = 180.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if condition():
                return
        except httpx.HTTPError:
            pass
        if time.monotonic() > deadline:
            sys.exit(f"no {what} within {timeout_s:.0f} s")
        time.sleep(0.2)


def _save(browser: Browser, name: str) -> None:
    path = _PICTURES / f"{name}.png"
    path.write_bytes(base64.b64decode(browser.screenshot()))
    print(f"{path.relative_to(_ROOT)}: {path.stat().st_size // 1024} KB")


def _log_in(browser: Browser, url: str) -> None:
    browser.open(f"{url}/")
    browser.type("#username", "mei")
    browser.type("#password", _PASSWORD)


def _take(browser: Browser, url: str) -> None:
    _log_in(browser, url)
    _save(browser, "login")
    browser.click("#login-form button[type=submit]")
    _wait(lambda: browser.is_shown("#input"), "input field")
    browser.run(_GREEDY)
    for number, question in enumerate(_QUESTIONS, 1):
        browser.type("#input", f"{question}\ue007")
        _wait(lambda number=number: len(browser.text(".message.assistant .text")) == number, "answer")
        _wait(lambda: browser.is_shown("#send"), "end of the answer")
    _save(browser, "page")
    browser.open(f"{url}/docs")
    _wait(lambda: "/chat/stream" in "".join(browser.text("#operations code")), "list of operations")
    opened = (
        "[...document.querySelectorAll('details')].find(one => one.textContent.includes('/chat/stream')).open = true"
    )
    browser.run(opened)
    _save(browser, "docs")


def _service(home: Path, port: int) -> subprocess.Popen[bytes]:
    program = str(Path(sys.executable).with_name("chatsvc"))
    environment = os.environ | {"CHATSVC_HOME": str(home), "PORT": str(port)}
    subprocess.run([program, "quickstart", "--prepare-only"], env=environment, check=True)
    password = home / "password"
    password.write_text(_PASSWORD, encoding="ascii")
    subprocess.run(
        [program, "user", "add", "mei", "--role", "user", "--password-file", str(password)], env=environment, check=True
    )
    return subprocess.Popen([program, "quickstart"], env=environment, stdout=subprocess.DEVNULL)


def main() -> None:
    """Start both, take the pictures, end both."""
    if DRIVER is None:
        sys.exit("chromium and chromium-driver are not installed")
    port, driver_port = free_port(), free_port()
    url, driver_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{driver_port}"
    with tempfile.TemporaryDirectory() as folder:
        service = _service(Path(folder) / "home", port)
        driver = subprocess.Popen([DRIVER, f"--port={driver_port}"], stdout=subprocess.DEVNULL)
        try:
            _wait(lambda: httpx.get(f"{url}/readyz").json() == {"status": "ok"}, "service")
            _wait(lambda: httpx.get(f"{driver_url}/status").json()["value"]["ready"], "chromedriver")
            browser = Browser(driver_url, Path(folder) / "profile", "en-US")
            try:
                _take(browser, url)
            finally:
                browser.quit()
        finally:
            for process in (driver, service):
                process.send_signal(signal.SIGTERM)
                process.wait()


if __name__ == "__main__":
    main()
