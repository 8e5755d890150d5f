"""A browser without JavaScript, and the sign-in links that let it in."""

from __future__ import annotations

import html
import re
from itertools import count
from typing import Any
from urllib.parse import urlencode, urlsplit

from fleet.support import FORM, Reply, exchange, rest

HOSTS = count()  # an address for each browser, since those of one address may sign in thirty times in a minute


class Browser:
    """Keeps cookies, sends forms with the token that stands in them, and asserts what every page must have."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.client = ("10.0.{}.{}".format(*divmod(next(HOSTS), 256)), 40000)
        self.cookies: dict[str, str] = {}
        self.page = ""
        self.reply: Reply

    def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
        jar = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        sent = {"host": "fleet.test", "origin": "https://fleet.test", "cookie": jar, "content-type": FORM} | headers
        self.reply = exchange(self.app, method, path, body, sent, self.client)
        self.page = self.reply.body.decode()
        for cookie in self.reply.headers.get("set-cookie", "").splitlines():
            self.keep(cookie)
        self.check_headers()
        return self.reply

    def keep(self, cookie: str) -> None:
        name, _, value = cookie.partition(";")[0].partition("=")
        if name and value.strip('"'):
            self.cookies[name] = value

    def check_headers(self) -> None:
        """Requirement D-08, on every answer."""
        headers = self.reply.headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")

    def get(self, path: str) -> Reply:
        return self.request("GET", path)

    def field(self, name: str) -> str:
        """What the first field of this name holds in the page."""
        found = re.search(rf'name="{name}" value="([^"]*)"', self.page)
        assert found is not None, f"no field {name}"
        return html.unescape(found[1])

    def post(self, path: str, **fields: str) -> Reply:
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', self.page)
        given = ({"csrfmiddlewaretoken": token[1]} if token else {}) | fields
        return self.request("POST", path, urlencode(given).encode())


def link(app: Any, operator: str = "alice") -> str:
    """The path of a new sign-in link."""
    made = rest(app, "POST", "/sign-in-links", {"operator": operator, "role": "admin"})
    return str(urlsplit(made.json["url"]).path)


def take(browser: Browser, path: str) -> Reply:
    """Open a link and press its button."""
    assert browser.get(path).status == 200
    return browser.post("/sign-in", code=path.rpartition("/")[2])
