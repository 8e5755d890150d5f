"""Every error that pi-agent raises on purpose.

    PiAgentError
      UsageError                 the command line asks for something that cannot be
      ConfigError                which file, which key, what was expected
      BoardError                 the facts do not describe a board
        NotARaspberryPiError       they describe some other machine
        UnreadableBoardError       it may be a Raspberry Pi, but its code is missing or hidden
      KeyFileError               missing, not a key, or open to others: stays so until somebody mends it
        KeyStoreError              the disk, chip or firmware that holds the key does not serve now: worth another try
      QueryError                 a query that means nothing (.position, .suggestion)
      MalformedTokenError        not a signed token in the one form we read
      InvalidAssertionError      a signed token that must not be believed (.claim)
      UnknownDeviceError         not in the registry
      OAuthError                 an OAuth error answer (.error, .description, .status): raised by the fleet, read back by the device
      TransportError             no usable answer came back
      AgentError                 the local agent has nothing to give yet, or refused (.status)
      ConflictError              somebody else changed it first

An error says what happened in its message, and in ``hint`` what to do about it, as a command where there is one.
``exit_code`` is what a command ends with (the numbers are listed in the README). Messages never hold a key, an
assertion or a token.
"""

from __future__ import annotations


class PiAgentError(Exception):
    """Anything pi-agent raises on purpose. ``hint`` is the next step for a person, or None."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(PiAgentError):
    exit_code = 2


class ConfigError(PiAgentError):
    """A setting is missing, unknown or wrong. ``path`` is the file (or the variable) it came from, ``key`` the setting."""

    exit_code = 2

    def __init__(
        self, message: str, *, path: str | None = None, key: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.path = path
        self.key = key


class BoardError(PiAgentError):
    """The facts at hand do not describe a board."""


class NotARaspberryPiError(BoardError):
    exit_code = 3


class UnreadableBoardError(BoardError):
    exit_code = 1


class KeyFileError(PiAgentError):
    """The private key cannot be used as it lies there. ``path`` names the file."""

    exit_code = 2  # the service is not started again because of it (RestartPreventExitStatus=, RA-23)

    def __init__(self, message: str, *, path: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.path = path


class KeyStoreError(KeyFileError):
    exit_code = 1


class QueryError(PiAgentError):
    """A query that means nothing. ``position`` counts characters from 0; ``suggestion`` is a query that would work."""

    exit_code = 2

    def __init__(
        self, message: str, *, position: int = 0, suggestion: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.position = position
        self.suggestion = suggestion


class MalformedTokenError(PiAgentError):
    """Not a compact JWS in the one strict form we read (``pi_agent.jws``)."""


class InvalidAssertionError(PiAgentError):
    """A token that must not be believed. ``claim`` names the member that was wrong; the message never repeats its value."""

    def __init__(self, message: str, *, claim: str) -> None:
        super().__init__(message)
        self.claim = claim


class UnknownDeviceError(PiAgentError):
    exit_code = 3


class OAuthError(PiAgentError):
    """An OAuth error answer (RFC 6749 section 5.2): ``error`` is the registered code, ``description`` the sentence beside it.

    ``status`` is the HTTP status it travels with, ``retry_after`` the seconds the server asked us to wait, if it did.
    """

    exit_code = 4

    def __init__(
        self,
        error: str,
        description: str = "",
        *,
        status: int = 400,
        retry_after: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(f"{error}: {description}" if description else error, hint=hint)
        self.error = error
        self.description = description
        self.status = status
        self.retry_after = retry_after


class TransportError(PiAgentError):
    """No usable answer. ``reason`` is one stable word (``dns``, ``refused``, ``timeout``, ``tls``, ``redirect``, ``answer`` ...)."""

    exit_code = 5

    def __init__(self, message: str, *, reason: str, retry_after: int | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        self.retry_after = retry_after


class AgentError(PiAgentError):
    """The local agent answered, but not with what was asked for. ``status`` is its HTTP status."""

    exit_code = 4

    def __init__(self, message: str, *, status: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class ConflictError(PiAgentError):
    exit_code = 6
