"""Looks at the statement of account in headless Chromium as a person would: statement.py URL DIRECTORY

At the size of a desktop and of a phone, in light and dark, with JavaScript and without: the page fits, its curve is there,
its links lead through all operations, the console stays empty, and no other host is asked for anything. DIRECTORY gets
screenshots, of whole pages and of a phone's first screen.
"""

import json
import random
import sys
import time
import urllib.request
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import quote, urlsplit

from browser import chromium

service = sys.argv[1].rstrip("/")
directory = Path(sys.argv[2])
run = str(time.time_ns())

SIZES = {"desktop": (1280, 900, 1), "phone": (390, 844, 2)}
ROWS = "return [...document.querySelectorAll('tbody tr')].map(row => row.querySelector('bdi').textContent)"


def change(user_id, context, amount, moment):
    body = {"userId": user_id, "context": context, "balanceChange": amount, "timestamp": moment.isoformat() + "Z"}
    request = urllib.request.Request(
        f"{service}/changeBalance", json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200


def household(user_id):
    """Fourteen months of a household; the number of its operations."""
    chance, begin = random.Random(6), datetime(2025, 1, 1, 8)
    operations = [("opening balance", 42_500, begin)]
    for month in range(14):
        first = datetime(2025 + month // 12, month % 12 + 1, 1, 9, 30)
        operations.append(("rent", -9_800, first))
        operations.append((f"electricity and heating, {first:%B}", -chance.randint(900, 2_400), first + timedelta(days=4)))
        operations.append(("groceries 🥕🍞", -chance.randint(2_500, 5_000), first + timedelta(days=9, hours=8)))
        operations.append((f"salary for {first:%B}", 31_250, first + timedelta(days=24)))
    operations.append(("a used car, paid in one sum after the loan was granted", -61_000, datetime(2025, 9, 14, 16, 5)))
    for context, amount, moment in operations:
        change(user_id, context, amount, moment)
    return len(operations)


def extremes(user_id):
    """All that is long: the id, contexts, numbers and time."""
    largest = 2**63 - 1
    operations = [
        ("all there can be", largest, datetime(1, 1, 1)),
        ("wort" * 1_000, -largest + 1, datetime(1969, 12, 31, 23, 59, 59)),
        ("several\nlines: <script>alert(1)</script>\n\n- one\n- two", 1, datetime(2026, 1, 31, 12)),
        ("", 0, datetime(2026, 1, 31, 12)),
        ("مرتب شهر يناير, salary", 2_500, datetime(9999, 12, 31, 23, 59, 59)),
    ]
    for context, amount, moment in operations:
        change(user_id, context, amount, moment)
    return len(operations)


def show(browser, size, scheme):
    width, height, scale = SIZES[size]
    browser.devtools(
        "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=size == "phone"
    )
    browser.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])


def check_page(browser):
    """The page that is shown fits its window and has its curve; its contexts."""
    width, inner = browser.run("return [document.documentElement.scrollWidth, innerWidth]")
    assert width <= inner, f"{width} pixels do not fit into {inner}"
    box = browser.run("const box = document.querySelector('svg').getBoundingClientRect(); return [box.width, box.height]")
    assert min(box) > 50, f"the curve has {box}"
    # What is not drawn has no box.
    drawn = browser.run(
        """return [...document.querySelectorAll('svg *')].map(part => {
            const {width, height} = part.getBoundingClientRect();
            return [part.tagName, width + height];
        })"""
    )
    assert {tag for tag, _ in drawn} == {"path", "circle", "text"}, drawn
    assert all(size > 0 for _, size in drawn), f"a part of the curve is not drawn: {drawn}"
    size = browser.run(
        """const text = document.querySelector('svg text'), svg = text.ownerSVGElement;
        return parseFloat(getComputedStyle(text).fontSize) * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width"""
    )
    assert 10 <= size <= 18, f"the curve's labels are {size} pixels high"
    return browser.run(ROWS)


def check_record(browser, what):
    errors = browser.errors()
    assert not errors, f"{what}: the console has {errors}"
    foreign = {url for url in browser.requested() if urlsplit(url).netloc != urlsplit(service).netloc}
    assert not foreign, f"{what}: requests left for {foreign}"


def page_through(browser, url, count, what):
    """Follows the links to the end and back to the first page."""
    browser.call("POST", "/url", {"url": url})
    first = check_page(browser)
    seen = len(first)
    pages = 1
    while browser.run("return document.querySelector('a[rel=next]') !== null"):
        before = browser.call("GET", "/url")
        browser.click("a[rel=next]")
        assert browser.call("GET", "/url") != before, f"{what}: the link leads nowhere"
        seen += len(check_page(browser))
        pages += 1
    assert seen == count, f"{what}: {seen} operations of {count}"
    if pages > 1:
        browser.click("nav a", "Latest operations")
        assert check_page(browser) == first, f"{what}: the first page is another"
    check_record(browser, what)
    return pages


with chromium(directory) as browser:
    users = {}
    for name, make, user_id in (
        ("household", household, f"ana {run}"),
        ("extremes", extremes, f"{run}/" + "Übergrößenträger😀" * 20),
    ):
        user_id = user_id[:256]
        users[name] = (f"{service}/{quote(user_id, safe='')}/history", make(user_id))
    for scripts in (True, False):
        browser.devtools("Emulation.setScriptExecutionDisabled", value=not scripts)
        for name, (url, count) in users.items():
            for size in SIZES:
                for scheme in ("light", "dark"):
                    what = f"{name}, {size}, {scheme}, {'with' if scripts else 'without'} JavaScript"
                    show(browser, size, scheme)
                    pages = page_through(browser, f"{url}?limit={20 if name == 'household' else 2}", count, what)
                    browser.call("POST", "/url", {"url": url})
                    check_page(browser)
                    if scripts:
                        browser.screenshot(directory / f"{name}-{size}-{scheme}.png", whole=True)
                        if size == "phone":
                            browser.screenshot(directory / f"{name}-{size}-{scheme}-screen.png")
                    print(f"{what}: {count} operations on {pages} pages")
    browser.call("POST", "/url", {"url": f"{service}/nobody-{run}/history"})
    assert browser.run("return document.querySelector('.empty') !== null")
    check_record(browser, "a user without operations")
