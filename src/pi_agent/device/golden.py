"""The marker that keeps a card from enrolling while it is being made into an image (requirement F-11).

``pi-agent wipe-identity --golden-image`` writes it, with the serial of the board it was written on. On that board the
agent then neither runs nor enrolls, so nothing that names it gets into the image. On any other board the marker has
done its work: the image has been written to a card of its own, and the marker goes. A marker without a serial (an image
made where no board is, such as in a chroot) holds everywhere, until somebody removes it.
"""

from __future__ import annotations

from pathlib import Path

from pi_agent.device import files
from pi_agent.errors import ConfigError

NAME = "golden-image"


def mark(state: Path, serial: str) -> None:
    """Hold back the board with ``serial``, or every board when it is empty. Raises KeyFileError."""
    files.replace(state / NAME, f"{serial}\n".encode())


def check(state: Path, serial: str) -> None:
    """Raise ConfigError on the board where the image is being made; elsewhere take the marker away."""
    path = state / NAME
    try:
        marked = files.read_private(path, limit=256).decode("utf-8", "replace").strip()
    except FileNotFoundError:
        return
    if marked and marked != serial:
        files.remove(path)
        return
    raise ConfigError(
        "this card is being made into an image, so this board does not enroll",
        path=str(path),
        hint=f"when the image has been taken, or to use this board after all: sudo rm {path}",
    )
