"""The tables of options, made from the code while the pages are built; ``conf.py`` connects `insert_tables`."""

from __future__ import annotations

import dataclasses
import re

from geventws.config import ClientConfig, ConnectionConfig, ServerConfig, options_table

CLASSES = {cls.__name__: cls for cls in (ServerConfig, ClientConfig)}
HEADINGS = ("seed name", "geventws name", "default", "unit", "what it decides", "what exceeding it does")


def make_table(cls: type[ConnectionConfig]) -> str:
    """Return the options of a class as a Markdown table."""
    metadata = {field.name: field.metadata for field in dataclasses.fields(cls)}
    rows = [
        (
            row.seed if row.seed == "—" else f"`{row.seed}`",
            f"`{row.name}`",
            f"`{row.default}`",
            row.unit or "—",
            metadata[row.name]["help"],
            metadata[row.name]["exceeded"] or "—",
        )
        for row in options_table(cls)
    ]
    return "\n".join(map(_join_cells, [HEADINGS, ("---",) * len(HEADINGS), *rows]))


def _join_cells(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def insert_tables(text: str) -> str:
    """Put each table where its comment stands."""
    return re.sub(r"<!-- options of (\w+) -->", lambda match: _wrap(make_table(CLASSES[match[1]])), text)


def _wrap(table: str) -> str:
    # The class is for the style sheet: six columns need more care than others.
    return f"```{{table}}\n:class: options\n\n{table}\n```"
