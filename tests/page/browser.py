#!/usr/bin/env python3
"""Looks at a page in a real browser: on a desktop and on a phone, light and dark.

    browser.py URL [--shots FOLDER] [--contains TEXT]…

Fails where the page is wider than the screen, asks for anything but itself, runs a script, complains
in the console, or does not show TEXT as text. Speaks the DevTools protocol over a pipe, so that it
needs nothing but Chromium and Python.
"""

import argparse
import base64
import json
import os
import pathlib
import select
import subprocess
import sys
import tempfile
import time

# Name, width and height in CSS pixels, pixels of the device for each, whether it is touched.
SCREENS = [("desktop", 1280, 860, 1, False), ("phone", 390, 844, 2, True), ("small-phone", 320, 568, 2, True)]
SCHEMES = ["light", "dark"]
# Generous: the machine may be busy, and a browser takes its time to start.
PATIENCE = 120

# What goes beyond the screen's right edge, except where it can be scrolled by itself.
TOO_WIDE = """(() => {
  const scrolls = (element) => element && element !== document.body &&
    (getComputedStyle(element).overflowX !== 'visible' || scrolls(element.parentElement));
  return [...document.querySelectorAll('body *')]
    .filter((element) => element.getBoundingClientRect().right > %d + 0.5 && !scrolls(element))
    .map((element) => `${element.tagName} ${element.className}: ${element.textContent.slice(0, 60)}`);
})()"""


class Browser:
    """A Chromium of its own, gone with its profile in the end."""

    def __init__(self):
        self._profile = tempfile.TemporaryDirectory(prefix="page-check-", ignore_cleanup_errors=True)
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # Chromium reads commands from 3 and writes answers to 4.
        command = ["/bin/sh", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "sh", "chromium"]
        self._log = open(pathlib.Path(self._profile.name) / "log", "w+", encoding="utf-8")
        self._process = subprocess.Popen(
            command + [
                "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--hide-scrollbars", "--disable-dev-shm-usage",
                f"--user-data-dir={self._profile.name}/profile", "--remote-debugging-pipe", "about:blank",
            ],
            pass_fds=[to_browser, from_browser], stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._last = 0
        self._rest = b""
        self.events = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)
        self._log.close()
        self._profile.cleanup()

    def call(self, method, session=None, **parameters):
        """Sends a command and returns its result; events that come in between are kept."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(method)
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise SystemExit(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method):
        """Waits for an event."""
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._receive(method))

    def _receive(self, what):
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._read], [], [], left)[0]:
                raise SystemExit(f"Chromium says nothing to {what}")
            received = os.read(self._read, 1 << 20)
            if not received:
                self._log.seek(0)
                raise SystemExit(f"Chromium is gone:\n{self._log.read()[-4000:]}")
            self._rest += received
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)


def look(browser, url, screen, scheme, contains, shots):
    """Loads the page on one screen and returns what is wrong with it."""
    name, width, height, scale, touch = screen
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(method, **parameters):
        return browser.call(method, session, **parameters)

    def evaluate(expression):
        result = call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in result:
            raise SystemExit(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    for domain in ["Page", "Runtime", "Log", "Network"]:
        call(f"{domain}.enable")
    call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=touch)
    call("Emulation.setTouchEmulationEnabled", enabled=touch)
    call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.events.clear()
    call("Page.navigate", url=url)
    browser.wait_for("Page.loadEventFired")

    wrong = []
    if shots and name != "small-phone":
        image = call("Page.captureScreenshot", format="png")["data"]
        path = pathlib.Path(shots) / f"page-{name}-{scheme}.png"
        path.write_bytes(base64.b64decode(image))
    evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true })")
    shown = evaluate("document.body.innerText")
    for text in contains:
        if text not in shown:
            wrong.append(f"does not show {text!r}")
    # Not innerWidth: a phone zooms out until everything is in it.
    page = evaluate("document.documentElement.scrollWidth")
    if page > width:
        wrong.append(f"is {page} pixels wide on a screen of {width}")
    wrong += [f"goes beyond the edge: {what}" for what in evaluate(TOO_WIDE % width)]
    if evaluate("document.scripts.length"):
        wrong.append("has a script")
    ground = evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in ground.strip("rgb()").split(",")[:3]) / 3
    if (brightness > 128) != (scheme == "light"):
        wrong.append(f"has the ground {ground}")
    for event in browser.events:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent" and parameters["request"]["url"].split(":")[0] != "data":
            if parameters["request"]["url"] != url:
                wrong.append(f"asks for {parameters['request']['url']}")
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening"):
            wrong.append(f"{method}: {json.dumps(parameters)[:500]}")
    browser.call("Target.closeTarget", targetId=target)
    return [f"{name}, {scheme}: {what}" for what in wrong]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--shots", help="a folder for screenshots")
    parser.add_argument("--contains", action="append", default=[], help="text that must be seen")
    arguments = parser.parse_args()
    wrong = []
    with Browser() as browser:
        for screen in SCREENS:
            for scheme in SCHEMES:
                wrong += look(browser, arguments.url, screen, scheme, arguments.contains, arguments.shots)
    for what in wrong:
        print(what, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
