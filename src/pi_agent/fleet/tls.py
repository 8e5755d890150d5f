"""The server's own certificate and key, for HTTPS without a proxy."""

from __future__ import annotations

import ssl
from pathlib import Path

from pi_agent.errors import ConfigError


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
