"""What a server counts while it works. ``metrics`` shows it.

Each counter is counted on the event loop, or by the one thread that owns it, so that no lock is needed.
"""

from __future__ import annotations

from collections import Counter

# What is counted: the name of a family, what it means, and the label that it is broken down by.
FAMILIES = {
    "pi_fleet_token_requests_total": ("Token requests, by how they ended.", "outcome"),
    "pi_fleet_requests_total": (
        "Requests to the other OAuth endpoints, by endpoint and how they ended.",
        "endpoint_outcome",
    ),
    "pi_fleet_token_batches_total": ("Transactions that token requests shared.", ""),
    "pi_fleet_token_batched_total": ("Token requests in those transactions.", ""),
    "pi_fleet_refused_connections_total": ("Connections that were turned away because too many were open.", ""),
    "pi_fleet_database_errors_total": ("Transactions that the database could not do, by kind of error.", "kind"),
}

COUNTS: Counter[tuple[str, str]] = Counter()


def count(family: str, label: str = "", by: int = 1) -> None:
    """Count something of a family."""
    COUNTS[family, label] += by
