"""What went wrong on the way to a server: from an error of the libraries to one that says what to look at. Pure.

Nothing of an answer is ever repeated (G-01); the words of an error count only while there was no answer to quote.
"""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import urllib3
from oauthlib.oauth2 import InsecureTransportError
from requests import exceptions

from pi_agent.errors import TransportError


def explained(error: Exception, *, patience: float) -> TransportError:
    """The TransportError that ``error`` of requests, urllib3 or oauthlib amounts to; ``patience`` is a socket's timeout."""
    match error:
        case exceptions.SSLError() if "WRONG_VERSION_NUMBER" in str(error):
            hint = "for one on this machine, for trying things out: http://127.0.0.1:PORT and --loopback-http"
            return TransportError("the server speaks no TLS at this address", reason="tls", hint=hint)
        case exceptions.SSLError():
            what = "the server's certificate is not trusted, or TLS failed: " + _words(error)
            hint = "look at the clock (date), at the server's name, and for an authority of your own at --ca-file (server.ca_file)"
            return TransportError(what, reason="tls", hint=hint)
        case exceptions.ProxyError():
            return TransportError("the proxy is of no help: " + _words(error), reason="proxy")
        case exceptions.InvalidSchema() | InsecureTransportError():
            what = "one of the addresses cannot be used: a server is reached by https, a proxy by http or https"
            hint = "look at server.issuer and server.proxy; plain http to this machine needs server.loopback_http"
            return TransportError(what, reason="address", hint=hint)
        case exceptions.Timeout() | urllib3.exceptions.TimeoutError():
            return TransportError(f"no answer within {patience:g} s", reason="timeout")
        case exceptions.ConnectionError():
            return _unreachable(error)
    return TransportError("the answer broke off or makes no sense: " + _cause(error), reason="answer")


def no_name_server() -> TransportError:
    return TransportError(
        "no name server says what the server's address is", reason="dns", hint="resolvectl status; cat /etc/resolv.conf"
    )


def _unreachable(error: Exception) -> TransportError:
    inner, peer = _innermost(error), _peer(error)
    if isinstance(inner, socket.gaierror):
        if inner.errno == socket.EAI_AGAIN:
            return no_name_server()
        hint = "is it spelled as it was given to you? resolvectl status"
        return TransportError(f"the name of {peer} is not known to DNS", reason="dns", hint=hint)
    if isinstance(inner, ConnectionRefusedError):
        return TransportError(f"nothing listens at {peer} (connection refused)", reason="refused")
    return TransportError("the server cannot be reached: " + _cause(error), reason="unreachable")


def _peer(error: Exception) -> str:
    """Who did not answer, in words."""
    parts = urlsplit(getattr(getattr(error, "request", None), "url", None) or "")
    return f"the server {parts.netloc}" if parts.netloc else "the server"


def _cause(error: BaseException) -> str:
    """What the system gives as the reason. Of any other error only its kind: its text may quote the answer (G-01)."""
    inner = _innermost(error)
    return _words(inner) if isinstance(inner, OSError) and inner.strerror else type(inner).__name__


def _words(error: BaseException) -> str:
    """The words of an error that came before there was an answer to quote."""
    inner = _innermost(error)
    text = inner.strerror if isinstance(inner, OSError) and inner.strerror else str(inner)
    return "".join(character if character.isprintable() else "?" for character in text)[:160]


def _innermost(error: BaseException) -> BaseException:
    """The error itself, out of those that the libraries have wrapped around it."""
    while isinstance(deeper := _wrapped(error), BaseException):
        error = deeper
    return error


def _wrapped(error: BaseException) -> object:
    context = None if error.__suppress_context__ else error.__context__
    return error.__cause__ or context or getattr(error, "reason", None)
