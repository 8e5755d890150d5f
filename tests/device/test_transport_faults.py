"""Networks and servers that fail: broken, slow, huge, not there, or not who they say they are."""

from __future__ import annotations

import contextlib
import gzip
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from device.asking import failed, failing, fetch
from device.servers import TOKEN, Authority, Request, Script, reply, says, serving
from pi_agent.device import transport
from pi_agent.errors import ConfigError, TransportError

JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
TOKEN_JSON = reply().partition(b"\r\n\r\n")[2]

# An attempt that outlives its time is left behind, with its connection, on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second in place of thirty."""
    monkeypatch.setattr(transport, "DEADLINE", 0.5)
    monkeypatch.setattr(transport, "SOCKET_TIMEOUT", 0.25)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


# RA-09

BROKEN: dict[str, tuple[bytes, ...]] = {
    "nothing": (),
    "half a status line": (b"HTTP/1.1 2",),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n",),
    "a token for a status line": (TOKEN.encode() + b" " + TOKEN.encode() + b"\r\n\r\n",),
    "a token for a header": (b"HTTP/1.1 200 OK\r\n" + TOKEN.encode() + b"\r\n\r\n",),
    "headers only": (JSON_HEAD,),
    "a body cut short": (JSON_HEAD + b"Content-Length: 500\r\n\r\n" + TOKEN_JSON[:-5],),
    "chunks that are none": (JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + TOKEN_JSON + b"\r\n",),
    "a chunk cut short": (JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n500\r\n" + TOKEN_JSON,),
    "a length that is no number": (JSON_HEAD + b"Content-Length: many\r\n\r\n{}",),
    "too many headers": (b"HTTP/1.1 200 OK\r\n", *(b"X-%d: y\r\n" % number for number in range(200)), b"\r\n"),
    "a header of 70 kB": (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70000 + b"\r\n\r\n",),
}


@pytest.mark.parametrize("parts", BROKEN.values(), ids=BROKEN.keys())
def test_ra09_g01_a_broken_answer_is_one_kind_of_error_that_quotes_nothing(parts: tuple[bytes, ...]) -> None:
    """Whatever the libraries raise leaves as a TransportError; the token in the wreck is not in its message."""
    assert failing(says(*parts)).reason in ("answer", "unreachable")


# RA-06, RA-07: servers that do not end


def hanging(channel: socket.socket, _: Request) -> None:
    with contextlib.suppress(OSError):
        channel.recv(1)


def dripping(head: bytes) -> Script:
    def script(channel: socket.socket, _: Request) -> None:
        channel.sendall(head)
        while True:
            channel.sendall(b" ")
            time.sleep(0.02)

    return script


def endless(head: bytes, part: bytes) -> Script:
    def script(channel: socket.socket, _: Request) -> None:
        channel.sendall(head)
        while True:
            channel.sendall(part)

    return script


def stopping(channel: socket.socket, request: Request) -> None:
    channel.sendall(JSON_HEAD + b"Content-Length: 5\r\n\r\n{")
    hanging(channel, request)


SLOW: dict[str, Script] = {
    "nothing ever": hanging,
    "a dripping header": dripping(b"HTTP/1.1 200 OK\r\nX: "),
    "a dripping body": dripping(JSON_HEAD + b"Content-Length: 5000\r\n\r\n"),
    "a dripping chunk": dripping(JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n1000\r\n"),
    "a body that stops": stopping,
    "100 Continue for ever": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}


@pytest.mark.parametrize("script", SLOW.values(), ids=SLOW.keys())
@pytest.mark.usefixtures("impatient")
def test_ra03_ra06_m04_a_server_that_does_not_end_ends_anyway(script: Script) -> None:
    """Neither silence nor a byte now and then holds an attempt beyond its time."""
    begun = time.monotonic()
    assert failing(script).reason == "timeout"
    assert time.monotonic() - begun < 10


@pytest.mark.usefixtures("impatient")
def test_ra03_a_listener_that_never_accepts_ends_anyway() -> None:
    """The connection stands in the kernel's queue, and nobody comes."""
    with socket.create_server(("127.0.0.1", 0), backlog=1) as door:
        assert failed(f"http://127.0.0.1:{door.getsockname()[1]}").reason == "timeout"


@pytest.mark.usefixtures("impatient")
def test_ra03_a_resolver_that_hangs_ends_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    """getaddrinfo cannot be interrupted; the attempt ends beside it, and says what it waited for."""
    awake = threading.Event()

    def resolve(*_: object, **__: object) -> None:
        awake.wait(5)
        raise socket.gaierror(socket.EAI_AGAIN, "late")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert failed("https://fleet.example/token").reason == "dns"
    awake.set()


@pytest.mark.usefixtures("impatient")
def test_ra03_all_requests_of_an_attempt_end_in_its_time() -> None:
    """What one request has used up, the next does not have; without ``one_attempt`` each has its own time."""
    with serving(hanging) as server:
        attempt = transport.Transport(loopback_http=True, one_attempt=True)
        said = [str(_failure(attempt, server.url)) for _ in range(5)]
        assert said[3:] == ["no answer in the time that an attempt has"] * 2
        assert len(server.requests) <= 3


def _failure(attempt: transport.Transport, url: str) -> TransportError:
    with pytest.raises(TransportError) as caught:
        attempt.get_json(url)
    return caught.value


HUGE: dict[str, Script] = {
    "a body of 70 kB": says(reply(b" " * 70000)),
    "a length of 10 GB": endless(JSON_HEAD + b"Content-Length: 10000000000\r\n\r\n", b" " * 65536),
    "a body without a length": endless(JSON_HEAD + b"Connection: close\r\n\r\n", b" " * 65536),
    "chunks for ever": endless(JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b" " * 4096 + b"\r\n"),
    "one chunk of 4 GB": endless(JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n", b" " * 65536),
}


@pytest.mark.parametrize("script", HUGE.values(), ids=HUGE.keys())
def test_ra07_an_answer_is_read_to_64_kib_and_no_further(script: Script) -> None:
    """However much the server has to say, it is cut off."""
    assert str(failing(script)) == "the answer is longer than 64 KiB"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "x-gzip", "gzip, identity", "GZIP"])
def test_ra07_m04_a_compressed_answer_is_refused_unread(coding: str) -> None:
    """A bomb of any coding is not unpacked: nothing compressed was asked for."""
    bomb = gzip.compress(b" " * 5_000_000)
    assert (
        str(failing(says(reply(bomb, Content_Encoding=coding)))) == "the answer is compressed, which was not asked for"
    )


def test_ra07_exactly_64_kib_is_an_answer() -> None:
    """The limit itself is read."""
    padded = TOKEN_JSON + b" " * (transport.MAX_ANSWER - len(TOKEN_JSON))
    with serving(says(reply(padded))) as server:
        assert fetch(server.url).access_token == TOKEN


# RA-02, RA-08: who is there


def test_ra02_nobody_there_is_said_as_it_is() -> None:
    """A closed port is "refused", a name that does not exist is "dns", even if it looks like something else."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    assert failed(f"http://127.0.0.1:{port}").reason == "refused"
    assert failed("https://refused.name-resolution.invalid").reason == "dns"


def reset(channel: socket.socket, _: Request) -> None:
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    channel.close()


def test_ra02_a_reset_is_an_unreachable_server() -> None:
    """The cause is the system's word for it."""
    error = failing(reset)
    assert (error.reason, str(error)) == ("unreachable", "the server cannot be reached: Connection reset by peer")


def test_ra08_a_good_certificate_of_the_named_ca_is_trusted(authority: Authority) -> None:
    """The case that the next tests differ from."""
    with serving(says(reply()), tls=authority.context()) as server:
        assert fetch(server.url, ca_file=str(authority.ca_file)).access_token == TOKEN


@pytest.mark.parametrize(
    ("options", "word"),
    [({"days": -1}, "expired"), ({"name": "other.example"}, "match"), ({"name": "127.0.0.2"}, "match")],
)
def test_ra08_a_bad_certificate_fails_closed_and_says_why(
    authority: Authority, options: dict[str, Any], word: str
) -> None:
    """Expired, or for another name or address: nothing is sent, and the cause is told."""
    with serving(says(reply()), tls=authority.context(**options)) as server:
        error = failed(server.url, ca_file=str(authority.ca_file))
        assert (error.reason, server.requests) == ("tls", [])
        assert word in str(error)


def test_ra08_another_ca_is_not_trusted(authority: Authority, tmp_path: Path) -> None:
    """A certificate of the same name from another authority, and no authority at all."""
    other = Authority(tmp_path)
    with serving(says(reply()), tls=authority.context()) as server:
        assert failed(server.url, ca_file=str(other.ca_file)).reason == "tls"
        assert failed(server.url).reason == "tls"
        assert server.requests == []


def test_ra08_tls_1_0_is_not_spoken(authority: Authority) -> None:
    """An old server is an error, not an old connection."""
    context = authority.context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1
    with serving(says(reply()), tls=context) as server:
        assert failed(server.url, ca_file=str(authority.ca_file)).reason == "tls"
        assert server.requests == []


@pytest.mark.usefixtures("impatient")
def test_ra08_a_handshake_that_hangs_ends(authority: Authority) -> None:
    """A server that accepts and never speaks TLS."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        url = f"https://127.0.0.1:{door.getsockname()[1]}"
        assert failed(url, ca_file=str(authority.ca_file)).reason == "timeout"


def test_ra08_https_never_falls_back_to_http(authority: Authority) -> None:
    """A plain server behind an https address sees no request."""

    def refuse(channel: socket.socket) -> None:
        channel.recv(65536)
        channel.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        channel.close()

    with socket.create_server(("127.0.0.1", 0)) as door:
        thread = threading.Thread(target=lambda: refuse(door.accept()[0]))
        thread.start()
        error = failed(f"https://127.0.0.1:{door.getsockname()[1]}", ca_file=str(authority.ca_file))
        thread.join()
    assert error.reason == "tls"


def test_a_ca_file_that_is_not_there_is_named() -> None:
    """It is the setting that is wrong, not the answer."""
    with pytest.raises(ConfigError, match=r"cannot read server\.ca_file, /nonexistent\.pem"):
        fetch("https://127.0.0.1:1", ca_file="/nonexistent.pem")
