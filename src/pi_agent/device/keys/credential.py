"""The key store ``credential``: the file key as systemd hands it to the service, decrypted from ``LoadCredentialEncrypted=``.

Without a TPM systemd's own key lies on the same card, so this keeps a stray backup of one file from being a leak, and
nothing more: the protection is still ``file``. systemd 252 gives a file of mode 0400 that is the service's, systemd 257
one of mode 0440 that is root's; both are good, anything that others could read or write is not.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from pi_agent.device.keys import file
from pi_agent.device.keys.file import FileKey
from pi_agent.errors import KeyFileError

NAME = file.NAME
DIRECTORY = "CREDENTIALS_DIRECTORY"
MAX_SIZE = 64 * 1024
HINT = "in the unit: LoadCredentialEncrypted=key.pem, made with: systemd-creds encrypt --name=key.pem FILE OUTPUT"


def load(name: str = NAME, alg: str = "ES256", *, environ: Mapping[str, str] = os.environ) -> FileKey:
    """The key that systemd put into ``$CREDENTIALS_DIRECTORY``. Raises KeyFileError."""
    directory = environ.get(DIRECTORY, "")
    if not directory.startswith("/"):
        raise KeyFileError("systemd has handed over no credentials", path=name, hint=HINT)
    path = Path(directory) / name
    return file.parse(_read(path), alg, origin=str(path))


def _read(path: Path) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise KeyFileError(f"cannot open {path}: {error.strerror}", path=str(path), hint=HINT) from error
    with os.fdopen(handle, "rb") as opened:
        found = os.fstat(handle)
        ours = found.st_uid in (0, os.geteuid())
        if not stat.S_ISREG(found.st_mode) or not ours or found.st_mode & 0o027:
            raise KeyFileError(f"{path} is not a credential of systemd's", path=str(path), hint=f"ls -l {path}")
        return opened.read(MAX_SIZE)
