"""Headless Chromium over its debugging pipe: no package, no port; and a PNG's pixels.

Python's standard library only.
"""
import base64
import collections
import json
import os
import select
import shutil
import struct
import subprocess
import tempfile
import time
import zlib


def find():
    """Chromium's path, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


class Browser:
    """A page of a browser of its own; what it logs, throws and asks the network for is kept."""

    def __init__(self, program):
        self.profile = tempfile.TemporaryDirectory()
        self.events, self.buffer, self.count = [], b"", 0
        down, to_browser = os.pipe()
        from_browser, up = os.pipe()
        # The browser reads its file descriptor 3 and writes 4; dup2 leaves those inheritable.
        def take_pipes():
            read, write = os.dup(down), os.dup(up)  # so that none of them is 3 or 4
            os.dup2(read, 3)
            os.dup2(write, 4)
        self.process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             "--no-first-run", "--disable-extensions", "--disable-background-networking",
             "--disable-dev-shm-usage", f"--user-data-dir={self.profile.name}",
             "--remote-debugging-pipe", "about:blank"],
            preexec_fn=take_pipes, close_fds=False, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env={**os.environ, "HOME": self.profile.name})
        os.close(down)
        os.close(up)
        self.to, self.source, self.session = to_browser, from_browser, None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(t for t in targets if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page["targetId"],
                                 flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(domain + ".enable")

    def receive(self, deadline):
        while b"\0" not in self.buffer:
            if not select.select([self.source], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            data = os.read(self.source, 1 << 20)
            if not data:
                raise ConnectionError("the browser has gone")
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while True:
            answer = self.receive(deadline)
            if answer.get("id") != self.count:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            else:
                return answer["result"]

    def open(self, url, width, height=900, dark=False):
        """Loads `url` in a window of that size; what was kept before is forgotten."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.events.clear()
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + 60
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self.receive(deadline))

    def complaints(self):
        """What the page logged or threw."""
        wrong = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [e["params"] for e in self.events if e.get("method") in wrong]

    def requests(self):
        return [e["params"]["request"]["url"] for e in self.events
                if e.get("method") == "Network.requestWillBeSent"]

    def value(self, expression):
        return self.call("Runtime.evaluate", expression=expression,
                         returnByValue=True)["result"].get("value")

    def screenshot(self):
        """The whole page as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png",
                                          captureBeyondViewport=True)["data"])

    def close(self):
        os.close(self.to)
        os.close(self.source)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.profile.cleanup()


class Image:
    """A PNG of 8 bits a channel, RGB or RGBA, as Chromium writes them."""

    def __init__(self, png):
        assert png[:8] == b"\x89PNG\r\n\x1a\n", "no PNG"
        at, data = 8, b""
        while at < len(png):
            size, kind = struct.unpack(">I4s", png[at:at + 8])
            body = png[at + 8:at + 8 + size]
            if kind == b"IHDR":
                self.width, self.height, depth, colours, _, _, interlaced = struct.unpack(
                    ">IIBBBBB", body)
                assert depth == 8 and colours in (2, 6) and not interlaced, body
                self.channels = 3 if colours == 2 else 4
            elif kind == b"IDAT":
                data += body
            at += 12 + size
        self.rows = self._rows(zlib.decompress(data))

    def _rows(self, raw):
        n, stride = self.channels, self.width * self.channels
        before, rows = bytearray(stride), []
        for y in range(self.height):
            kind = raw[y * (stride + 1)]
            row = bytearray(raw[y * (stride + 1) + 1:(y + 1) * (stride + 1)])
            for i in range(stride) if kind else ():
                left = row[i - n] if i >= n else 0
                above, corner = before[i], before[i - n] if i >= n else 0
                row[i] = row[i] + (left if kind == 1 else above if kind == 2 else
                                   (left + above) // 2 if kind == 3 else
                                   paeth(left, above, corner)) & 255
            rows.append(row)
            before = row
        return rows

    def colours(self, x, y, width, height):
        """How often each colour stands in a rectangle."""
        n = self.channels
        return collections.Counter(
            tuple(row[n * i:n * i + 3]) for row in self.rows[y:y + height]
            for i in range(x, min(x + width, self.width)))


def paeth(a, b, c):
    p = a + b - c
    pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
    return a if pa <= pb and pa <= pc else b if pb <= pc else c
