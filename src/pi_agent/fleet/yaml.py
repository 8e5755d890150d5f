"""Members as YAML that people can read. Every text that might mean something is quoted as in JSON, which is YAML but for one
thing: JSON escapes a character beyond U+FFFF as two halves, and YAML would read back the halves.
"""

from __future__ import annotations

import json
import re
from typing import Any

PLAIN = re.compile(r"[A-Za-z]([A-Za-z0-9 ./_-]*[A-Za-z0-9])?", re.ASCII)
BEYOND_ASCII = re.compile(r"[^ -~]")
WORDS = frozenset(["true", "false", "yes", "no", "on", "off", "null", "y", "n"])


def dump(value: Any, margin: str = "") -> str:
    """A document, or with ``margin`` the lines of a value below a key."""
    if isinstance(value, dict) and value:
        return "".join(f"{margin}{_scalar(name)}:{_below(one, margin)}" for name, one in value.items())
    if isinstance(value, list) and value:
        return "".join(f"{margin}-{_item(one, margin)}" for one in value)
    return f"{margin}{_scalar(value)}\n"


def _below(value: Any, margin: str) -> str:
    if isinstance(value, dict | list) and value:
        return "\n" + dump(value, margin + "  ")
    return f" {_scalar(value)}\n"


def _item(value: Any, margin: str) -> str:
    if isinstance(value, dict) and value:
        return " " + dump(value, margin + "  ").lstrip(" ")
    return _below(value, margin)


def _scalar(value: Any) -> str:
    if isinstance(value, str) and PLAIN.fullmatch(value) and value.lower() not in WORDS:
        return value
    return BEYOND_ASCII.sub(_escape, json.dumps(value, ensure_ascii=False))


def _escape(character: re.Match[str]) -> str:
    code = ord(character[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
