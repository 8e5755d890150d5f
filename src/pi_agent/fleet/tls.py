"""The server's own certificate and key, for HTTPS without a proxy."""

from __future__ import annotations

import ipaddress
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from pi_agent.errors import ConfigError

SOON_DAYS = 14  # who renews by itself has done so by then


def load_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    """Take a certificate and its key into use; without ``key`` both are in one file.

    Raises ConfigError, which says which of the two files is of no use, and why.
    """
    _look(
        certificate,
        b"CERTIFICATE",
        "certificate",
        key="tls_cert",
        hint=f"openssl x509 -noout -subject -in {certificate}",
    )
    hint = f"openssl pkey -noout -in {key}" if key else "name the file of the private key with --tls-key FILE"
    _look(key or certificate, b"PRIVATE KEY", "private key", key="tls_key", hint=hint)

    def locked() -> str:
        raise ConfigError(
            f"the private key in {key or certificate} is encrypted, and nobody is there to type its password",
            key="tls_key",
            hint=f"openssl pkey -in {key or certificate} -out FILE",
        )

    try:
        context.load_cert_chain(certificate, key, password=locked)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            what = f"the private key in {key or certificate} is not that of the certificate in {certificate}"
        else:
            what = f"cannot use the certificate in {certificate} with the key in {key or certificate}: {error.reason}"
        raise ConfigError(what, key="tls_cert", hint=f"openssl x509 -noout -subject -in {certificate}") from error


def _look(path: Path, mark: bytes, what: str, *, key: str, hint: str) -> None:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the {what} in {path}: {error.strerror}", key=key) from error
    if mark + b"-----" not in text:
        raise ConfigError(f"there is no {what} in {path}; it has to be PEM", key=key, hint=hint)


@dataclass(frozen=True, slots=True)
class Validity:
    """When a certificate is good (seconds since 1970), and for which hosts."""

    begins: float
    ends: float
    names: tuple[str, ...]

    def trouble(self, now: float) -> str:
        """Why nobody believes it at this time; nothing when they may."""
        if now < self.begins:
            return f"it is good only from {_day(self.begins)} on"
        return f"it ended on {_day(self.ends)}" if now > self.ends else ""

    def is_for(self, host: str) -> bool:
        """Whether one of the names is the host's; a star stands for the first part of one (RFC 9525)."""
        wanted = _canonical(host)
        rest = wanted.partition(".")[2]
        return wanted in self.names or bool(rest and f"*.{rest}" in self.names)


def validity(certificate: Path) -> Validity:
    """What the first certificate of a file says. Raises ConfigError."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no certificate in PEM"
        raise ConfigError(f"cannot read the certificate in {certificate}: {reason}", key="tls_cert") from error
    names: list[str] = []
    with suppress(x509.ExtensionNotFound):
        listed = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = [name.lower() for name in listed.get_values_for_type(x509.DNSName)]
        names += [str(address) for address in listed.get_values_for_type(x509.IPAddress)]
    return Validity(_seconds(found, "not_valid_before"), _seconds(found, "not_valid_after"), tuple(names))


def _seconds(found: x509.Certificate, name: str) -> float:
    at: datetime = getattr(found, f"{name}_utc", None) or getattr(found, name).replace(tzinfo=UTC)  # cryptography < 42
    return at.timestamp()


def _canonical(host: str) -> str:
    with suppress(ValueError):
        return str(ipaddress.ip_address(host))
    return host.lower()


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
