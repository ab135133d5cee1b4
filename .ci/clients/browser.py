"""Headless Chromium, spoken to through chromedriver over HTTP, as the WebDriver standard says."""

import base64
import json
import re
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from urllib.parse import urlsplit

PATIENCE_SECONDS = 60
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    def __init__(self, driver_url, profile):
        arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1400,1600",
            f"--user-data-dir={profile}",
            # What the browser asks by itself fails, too; what the page asks is in the log even if it fails.
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        ]
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
        }
        self.url = driver_url
        session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self.url = f"{driver_url}/session/{session['sessionId']}"

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            return json.load(answer)["value"]

    def find(self, css, text=""):
        """The first element that matches, holds the text and is shown; waits until there is one."""
        bound = time.monotonic() + PATIENCE_SECONDS
        script = """
            return [...document.querySelectorAll(arguments[0])]
                .find(e => e.textContent.includes(arguments[1]) && e.offsetParent !== null) ?? null"""
        while time.monotonic() < bound:
            if found := self.call("POST", "/execute/sync", {"script": script, "args": [css, text]}):
                return found[ELEMENT]
            time.sleep(0.1)
        raise AssertionError(f"{css} with {text!r} does not appear")

    def click(self, css, text=""):
        self.call("POST", f"/element/{self.find(css, text)}/click", {})

    def text(self, css):
        return self.call("GET", f"/element/{self.find(css)}/text")

    def type(self, css, text):
        element = self.find(css)
        # The clear command of WebDriver is not noticed by the page's framework.
        select_all = "arguments[0].focus(); arguments[0].select()"
        self.call("POST", "/execute/sync", {"script": select_all, "args": [{ELEMENT: element}]})
        self.call("POST", f"/element/{element}/value", {"text": text})

    def log(self, kind):
        return self.call("POST", "/se/log", {"type": kind})

    def run(self, script, *arguments):
        """What a script in the page returns."""
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def devtools(self, command, **parameters):
        """A command of Chromium's own protocol."""
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def screenshot(self, path, whole=False):
        """Of what is seen, or of the whole page."""
        shot = self.devtools("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def requested(self):
        """Every address that was asked for since the last call, by the browser's own record."""
        requested = set()
        for entry in self.log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                parameters = message["params"]
                requested.add(parameters["request"]["url"] if "request" in parameters else parameters["url"])
        # What is in the browser or in the page leaves no process; Chromium's own first page is among it.
        return {url for url in requested if urlsplit(url).scheme not in ("about", "blob", "chrome", "data")}

    def errors(self):
        """What the console says since the last call, violations of a Content-Security-Policy included."""
        return [entry["message"] for entry in self.log("browser") if entry["level"] in ("SEVERE", "WARNING")]


@contextmanager
def chromium(directory):
    """A browser that ends with the block."""
    directory.mkdir(parents=True)
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        started = (re.search(r"started successfully on port (\d+)", line) for line in driver.stdout)
        port = next(match[1] for match in started if match)
        browser = Browser(f"http://127.0.0.1:{port}", directory / "profile")
        try:
            yield browser
        finally:
            browser.call("DELETE", "")
    finally:
        driver.terminate()
        driver.wait()
