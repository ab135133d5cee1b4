"""Explores Swagger UI in headless Chromium as a person would: explore.py URL DIRECTORY

Executes a change and a read, and fails if the page asked any other host for anything. DIRECTORY gets a screenshot.
"""

import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from browser import chromium

service = sys.argv[1].rstrip("/")
directory = Path(sys.argv[2])


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
    """Every request that the page made."""
    sent = browser.requested()
    foreign = {url for url in sent if urlsplit(url).netloc != urlsplit(service).netloc}
    assert not foreign, f"requests left for {foreign}"
    for path in ("/docs", "/changeBalance", "/balance"):
        assert any(urlsplit(url).path.endswith(path) for url in sent), f"{path} is not in the record: {sent}"
    print(f"{len(sent)} addresses requested, all of {urlsplit(service).netloc}")
    errors = [entry["message"] for entry in browser.log("browser") if entry["level"] == "SEVERE"]
    assert not errors, f"the page's console has {errors}"


with chromium(directory) as browser:
    try:
        print("Chromium", browser.run("return navigator.userAgent"))
        explore(browser)
        check_requests(browser)
    finally:
        browser.screenshot(directory / "docs.png")
