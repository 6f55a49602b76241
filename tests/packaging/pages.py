"""The commands that a page tells people to type, so that a test types the same."""

from __future__ import annotations

from pathlib import Path

from tests.packaging.system import PROJECT


def blocks(page: str, heading: str = "") -> list[str]:
    """The blocks of code of a page of the checkout, below a heading and before the next."""
    found: list[str] = []
    wanted, inside = not heading, False
    for line in Path(PROJECT / page).read_text().splitlines():
        if line.startswith("```"):
            inside = not inside
            if inside and wanted:
                found.append("")
        elif inside:
            if wanted:
                found[-1] += line + "\n"
        elif line.startswith("#"):
            wanted = not heading or line.lstrip("# ") == heading
    assert found, f"{page} has no commands below {heading!r}"
    return found


def commands(page: str, heading: str = "") -> list[str]:
    """The single commands of those blocks, in order."""
    return [line for block in blocks(page, heading) for line in block.splitlines() if line]
