"""How commands print: tables for people, one JSON document for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from qvpn_server.admin_protocol import rfc3339


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as they must be; an empty cell is a dash."""
    table = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = ((cell or "-").ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def print_json(document: object) -> None:
    """One JSON document."""
    print(json.dumps(document, indent=2))


def moment(seconds: int | None) -> str | None:
    """UNIX seconds in UTC (RFC 3339)."""
    return None if seconds is None else rfc3339(datetime.fromtimestamp(seconds, UTC))
