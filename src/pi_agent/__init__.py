"""pi-agent: the identity agent for Raspberry Pi.

    >>> from pi_agent import parse_cpuinfo
    >>> parse_cpuinfo("Hardware: BCM2835\\nRevision: a01041\\nSerial: 00000000c3a91e5f").model
    'Raspberry Pi 2 Model B'

Importing the package loads none of its modules: each name below comes from its module when it is first used, so that
a small daemon pays only for what it needs.
"""

__version__ = "0.1.0"

__all__ = [
    "Board",
    "BoardError",
    "NotARaspberryPiError",
    "PiAgentError",
    "Revision",
    "UnreadableBoardError",
    "board_claims",
    "decode_revision",
    "parse_cpuinfo",
]

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing
if TYPE_CHECKING:
    from pi_agent.board import Board, board_claims, parse_cpuinfo
    from pi_agent.errors import BoardError, NotARaspberryPiError, PiAgentError, UnreadableBoardError
    from pi_agent.revision import Revision, decode_revision

_HOMES = {
    "Board": "board",
    "BoardError": "errors",
    "NotARaspberryPiError": "errors",
    "PiAgentError": "errors",
    "Revision": "revision",
    "UnreadableBoardError": "errors",
    "board_claims": "board",
    "decode_revision": "revision",
    "parse_cpuinfo": "board",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
