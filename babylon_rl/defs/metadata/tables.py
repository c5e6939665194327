"""Tables and single figures: bounded, rounded for the eye, and without anything that breaks a line."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg

Rows = Sequence[Mapping[str, Any]]

MOST_ROWS = 24
LONGEST_CELL = 120


def table(rows: Rows, columns: Iterable[str], most: int = MOST_ROWS) -> dg.MetadataValue:
    """The columns of the rows. Of a long table the first and the last rows, and how many lie between them."""
    columns = list(columns)
    shown: list[Mapping[str, Any]] = list(rows)
    if len(rows) > most:
        between = {**dict.fromkeys(columns, "…"), columns[0]: f"… {len(rows) - most} more in the table"}
        shown = [*rows[: most - most // 2], between, *rows[-(most // 2) :]]
    records = [dg.TableRecord({column: cell(row.get(column)) for column in columns}) for row in shown]
    return dg.MetadataValue.table(records, dg.TableSchema([dg.TableColumn(column) for column in columns]))


def differing(rows: Rows, columns: Iterable[str]) -> list[str]:
    """The columns in which the rows differ; what they all share is better said once than in each row."""
    return [column for column in columns if any(row.get(column) != rows[0].get(column) for row in rows)]


def cell(value: Any) -> str | int | float | bool | None:
    """A value as a cell holds it: a number rounded, a text on one line and cut, a missing value empty."""
    if isinstance(value, float):
        return number(value)
    if value is None or isinstance(value, bool | int):
        return value
    text = " ".join("".join(mark if mark.isprintable() else " " for mark in str(value)[:1000]).split())
    return text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 1]}…"


def number(value: float | None) -> float | None:
    """Four significant digits, None for what is not a number; figures of a thousand and more keep their units."""
    if value is None or not math.isfinite(value):
        return None
    return float(round(value)) if abs(value) >= 1000 else float(f"{value:.4g}")


def figures(values: Mapping[str, float | int | None]) -> dict[str, float | int]:
    """Numbers that Dagster plots over partitions; unknown ones are left out, for a gap is no zero."""
    shown = {name: number(value) if isinstance(value, float) else value for name, value in values.items()}
    return {name: value for name, value in shown.items() if value is not None}


def dollars(value: float | None) -> str:
    """An amount with its sign; a dash where it is unknown."""
    known = value is not None and math.isfinite(value)
    return f"{'-' if value < 0 else '+'}${abs(value):,.2f}" if known else "–"


def counted(values: Iterable[Any]) -> str:
    """How often each value occurs: `7 logged, 1 no_text`."""
    found: dict[str, int] = {}
    for value in values:
        found[str(value)] = found.get(str(value), 0) + 1
    return ", ".join(f"{count} {name}" for name, count in sorted(found.items(), key=lambda item: (-item[1], item[0])))
