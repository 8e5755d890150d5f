"""The style sheet and the icon, straight from this package: no collecting step, and no copy that could be stale.

WhiteNoise finds types, validators and ranges; it is asked directly rather than as Django's middleware, whose files
would be read on the thread of a page.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from whitenoise import WhiteNoise  # type: ignore[import-untyped]  # it ships no types

from pi_agent.fleet.web import Answer

PREFIX = "/static/"
FILES = WhiteNoise(
    None, root=Path(__file__).parent / "static", prefix=PREFIX, max_age=300, allow_all_origins=False
).files


def answer(method: str, path: str, headers: Mapping[bytes, bytes]) -> Answer:
    """A static file, or 404. ``headers`` are those of the request, with names in lower case."""
    if path not in FILES:
        return Answer(404, b"not found\n", {"content-type": "text/plain"})
    asked = {
        f"HTTP_{name.decode('latin-1').upper().replace('-', '_')}": value.decode("latin-1")
        for name, value in headers.items()
    }
    response = FILES[path].get_response(method, asked)
    body = b""
    if response.file is not None:
        with response.file:
            body = response.file.read()
    return Answer(int(response.status), body, {name.lower(): value for name, value in response.headers})
