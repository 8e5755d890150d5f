"""Devices as a preview showed them, as a short text: who they are and how they stand. Both ends of a change hold it to that."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def fingerprint(devices: Iterable[tuple[str, str]]) -> str:
    """The same for the same ids with the same statuses, in the order of the ids."""
    digest, count = hashlib.sha256(), 0
    for client_id, status in devices:
        digest.update(f"{client_id} {status}\n".encode())
        count += 1
    return f"{count}-{digest.hexdigest()[:32]}"
