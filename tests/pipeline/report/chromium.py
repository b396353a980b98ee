"""A headless Chromium driven through chromedriver's HTTP interface (W3C WebDriver), for tests of pages."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib import error, request

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1300,1000"]  # nothing outside can be reached


def found() -> bool:
    return bool(shutil.which("chromedriver") and (shutil.which("chromium") or shutil.which("google-chrome")))


class Chromium:
    """A browser with a profile of its own in `folder`; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Chromium:
        self.process = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        line = next(line for line in self.process.stdout if "started successfully on port" in line)
        port = line.strip().rstrip(".").split()[-1]
        self.url = f"http://127.0.0.1:{port}"
        options = {"args": [*FLAGS, f"--user-data-dir={self.folder}"]}
        options["binary"] = shutil.which("chromium") or shutil.which("google-chrome")  # type: ignore[assignment]
        capabilities = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        self.url += "/session"
        self.url += "/" + self._call("POST", "", {"capabilities": capabilities})["sessionId"]
        return self

    def __exit__(self, *_: object) -> None:
        self._call("DELETE", "")
        self.process.terminate()
        self.process.wait(10)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        call = request.Request(self.url + path, data=data, method=method, headers={"Content-Type": "application/json"})
        try:
            with request.urlopen(call, timeout=120) as reply:
                return json.load(reply)["value"]
        except error.HTTPError as refused:
            raise AssertionError(json.load(refused)["value"]["message"]) from None

    def open(self, page: Path) -> None:
        self._call("POST", "/url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value a function body returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait_for(self, condition: str, seconds: float = 60) -> float:
        """Seconds until a JavaScript condition held."""
        start = time.perf_counter()
        while not self.run(f"return Boolean({condition})"):
            assert time.perf_counter() - start < seconds, f"never true: {condition}"
            time.sleep(0.02)
        return time.perf_counter() - start

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))
