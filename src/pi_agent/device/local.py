"""HTTP/1.1 as the agent speaks it on its socket: requests in, answers out. Pure: bytes and values, no socket.

Strict and small on purpose: GET and POST, no bodies, 4 KiB a request, plain ``name=value`` queries. What is not a request
in this form is a BadRequestError with its status and a sentence. The resident imports this, so it imports nothing.
"""

from __future__ import annotations

MAX_REQUEST = 4096
MAX_KNOWN = 32
PROBLEM = "application/problem+json"

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing
if TYPE_CHECKING:
    from pi_agent.device.api import Wish

    Found = tuple["Request", int]

_known: dict[bytes, Found] = {}  # a program asks with the same bytes each time: they are read once

REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


class BadRequestError(Exception):
    """``status`` and a sentence for the caller; the connection is closed after it."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class Request:
    """``path`` without its query, ``query`` decoded, and whether the caller wants to go on talking.

    ``wish`` is room for what the query means (``api.py``), which is worked out once.
    """

    __slots__ = ("keep_alive", "method", "path", "query", "wish")

    def __init__(self, method: str, path: str, query: dict[str, str], keep_alive: bool) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.keep_alive = keep_alive
        self.wish: Wish | None = None


def parse(buffer: bytes) -> Found | None:
    """The first request in ``buffer`` and its length, or None while it is not complete. Raises BadRequestError."""
    known = _known.get(buffer)
    if known:
        return known
    head, end, rest = buffer.partition(b"\r\n\r\n")
    length = len(head) + len(end)
    if length > MAX_REQUEST:
        raise BadRequestError(431, "a request has at most 4096 bytes")
    if not end:
        return None
    found = (_request(head), length)
    if not rest:
        if len(_known) >= MAX_KNOWN:
            _known.clear()
        _known[buffer] = found
    return found


def _request(head: bytes) -> Request:
    lines = head.split(b"\r\n")
    method, target, version = _request_line(lines[0])
    headers = _headers(lines[1:])
    if headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers:
        raise BadRequestError(400, "requests to the agent have no body")
    path, _, query = target.partition(b"?")
    tokens = {token.strip() for token in headers.get(b"connection", b"").lower().split(b",")}
    keep_alive = b"close" not in tokens if version == b"HTTP/1.1" else b"keep-alive" in tokens
    return Request(method.decode("ascii"), path.decode("ascii"), _query(query), keep_alive)


def answer(
    status: int,
    body: bytes,
    *,
    keep_alive: bool,
    content_type: str = "application/json",
    retry_after: int | None = None,
) -> bytes:
    """The bytes of an answer. Nothing that the agent says may be cached."""
    later = "" if retry_after is None else f"Retry-After: {retry_after}\r\n"
    head = (
        f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-store\r\nConnection: {'keep-alive' if keep_alive else 'close'}\r\n"
        f"{later}\r\n"
    )
    return head.encode("ascii") + body


def refusal(
    status: int, detail: str, *, keep_alive: bool, hint: str = "", reason: str = "", retry_after: int | None = None
) -> bytes:
    """The bytes of a problem document (RFC 9457): ``detail`` says what happened, ``hint`` what to do about it."""
    members = {"title": REASONS[status], "status": status, "detail": detail}
    body = write_json(members | ({"hint": hint} if hint else {}) | ({"reason": reason} if reason else {}))
    return answer(status, body, keep_alive=keep_alive, content_type=PROBLEM, retry_after=retry_after)


def write_json(value: object) -> bytes:
    """JSON of dicts, text, whole numbers, booleans and None; ready-made JSON is passed as ``bytes``."""
    return _json(value).encode()


def _json(value: object) -> str:
    match value:
        case bytes():
            return value.decode()
        case str():
            return '"' + "".join(map(_escaped, value)) + '"'
        case dict():
            return "{" + ", ".join(f"{_json(name)}: {_json(member)}" for name, member in value.items()) + "}"
        case None:
            return "null"
        case list():
            return "[" + ", ".join(map(_json, value)) + "]"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
    raise TypeError(type(value))


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if character >= " " else f"\\u{ord(character):04x}"


def _request_line(line: bytes) -> tuple[bytes, bytes, bytes]:
    words = line.split(b" ")
    if len(words) != 3 or words[2] not in (b"HTTP/1.1", b"HTTP/1.0") or words[1][:1] != b"/" or not line.isascii():
        raise BadRequestError(400, "that is not an HTTP/1.1 request line")
    if words[0] not in (b"GET", b"POST"):
        raise BadRequestError(405, "the agent answers GET and POST")
    return words[0], words[1], words[2]


def _headers(lines: list[bytes]) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or name.strip() != name or not line.isascii():
            raise BadRequestError(400, "a header line has no name, or a space around it")
        if name.lower() in headers and name.lower() in (b"host", b"content-length", b"connection"):
            raise BadRequestError(400, "a header stands twice")
        headers[name.lower()] = value.strip()
    return headers


def _query(text: bytes) -> dict[str, str]:
    query: dict[str, str] = {}
    for pair in filter(None, text.split(b"&")):
        name, _, value = pair.partition(b"=")
        if _decoded(name) in query:
            raise BadRequestError(400, "a parameter stands twice")
        query[_decoded(name)] = _decoded(value)
    return query


def _decoded(text: bytes) -> str:
    plain, *escaped = text.split(b"%")
    try:
        data = plain.replace(b"+", b" ") + b"".join(_byte(part[:2]) + part[2:].replace(b"+", b" ") for part in escaped)
        decoded = data.decode("utf-8")
    except ValueError as error:
        raise BadRequestError(400, "a parameter is not percent-encoded UTF-8") from error
    if any(character < " " or character == "\x7f" for character in decoded):
        raise BadRequestError(400, "a parameter holds control characters")
    return decoded


def _byte(digits: bytes) -> bytes:
    if len(digits) != 2 or not digits.isalnum():  # fromhex would skip white space
        raise ValueError("no two digits")
    return bytes.fromhex(digits.decode("ascii"))
