"""pi-agent: the identity agent for Raspberry Pi."""

__version__ = "0.1.0"
