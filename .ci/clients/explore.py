"""Explores Swagger UI in headless Chromium as a person would: explore.py URL DIRECTORY

Executes a change and a read, and fails if the page asked any other host for anything. DIRECTORY gets a screenshot.
chromedriver is spoken to over HTTP, as the WebDriver standard says.
"""

import base64
import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

PATIENCE_SECONDS = 60
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"

service = sys.argv[1].rstrip("/")
directory = Path(sys.argv[2])


class Browser:
    def __init__(self, driver_url):
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
            f"--user-data-dir={directory / 'profile'}",
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


def try_out(browser, operation, fill):
    """Expands an operation, fills in, executes; the status and the body that the page then shows."""
    block = f"[id$='-{operation}'].opblock"
    browser.click(f"{block} .opblock-summary")
    browser.click(f"{block} .try-out__btn", "Try it out")
    fill(block)
    browser.click(f"{block} .execute", "Execute")
    live = f"{block} .live-responses-table .response"
    status = browser.text(f"{live} .response-col_status").split()[0]
    return status, json.loads(browser.text(f"{live} .response-col_description .highlight-code pre"))


def explore(browser):
    browser.call("POST", "/url", {"url": f"{service}/docs"})
    # chromedriver types characters of the basic plane only, so no emoji.
    user_id = f"swagger/ui {time.time_ns()}"
    change = {"userId": user_id, "context": "explored", "balanceChange": 2500, "timestamp": "2026-01-31T12:00:00Z"}

    def fill_change(block):
        browser.type(f"{block} tr[data-param-name='Idempotency-Key'] input", user_id.replace(" ", "-"))
        browser.type(f"{block} textarea.body-param__text", json.dumps(change))

    status, changed = try_out(browser, "changeBalance", fill_change)
    assert status == "200" and changed["balance"] == 2500 and changed["userId"] == user_id, (status, changed)
    print(f"changeBalance: {status}, balance {changed['balance']}")

    def fill_read(block):
        browser.type(f"{block} tr[data-param-name='userId'] input", user_id)
        browser.type(f"{block} tr[data-param-name='timestamp'] input", change["timestamp"])

    status, read = try_out(browser, "getBalance", fill_read)
    assert status == "200" and read == {key: changed[key] for key in ("userId", "timestamp", "balance")}, (status, read)
    print(f"getBalance: {status}, balance {read['balance']}")


def check_requests(browser):
    """Every request that the page made, by the browser's own record."""
    requested = set()
    for entry in browser.log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
            parameters = message["params"]
            requested.add(parameters["request"]["url"] if "request" in parameters else parameters["url"])
    # What is in the browser or in the page leaves no process; Chromium's own first page is among it.
    sent = {url for url in requested if urlsplit(url).scheme not in ("about", "blob", "chrome", "data")}
    foreign = {url for url in sent if urlsplit(url).netloc != urlsplit(service).netloc}
    assert not foreign, f"requests left for {foreign}"
    for path in ("/docs", "/changeBalance", "/balance"):
        assert any(urlsplit(url).path.endswith(path) for url in sent), f"{path} is not in the record: {sent}"
    print(f"{len(sent)} addresses requested, all of {urlsplit(service).netloc}")
    errors = [entry["message"] for entry in browser.log("browser") if entry["level"] == "SEVERE"]
    assert not errors, f"the page's console has {errors}"


def main():
    directory.mkdir(parents=True)
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        started = (re.search(r"started successfully on port (\d+)", line) for line in driver.stdout)
        port = next(match[1] for match in started if match)
        browser = Browser(f"http://127.0.0.1:{port}")
        try:
            print("Chromium", browser.call("POST", "/execute/sync", {"script": "return navigator.userAgent", "args": []}))
            explore(browser)
            check_requests(browser)
        finally:
            (directory / "docs.png").write_bytes(base64.b64decode(browser.call("GET", "/screenshot")))
            browser.call("DELETE", "")
    finally:
        driver.terminate()
        driver.wait()


main()
