"""The only module that imports pyarrow: writes rows of JSON values as typed columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, BinaryIO

from gpuledger.errors import Unavailable
from gpuledger.results import NUMBERS

ROWS_AT_ONCE = 10_000

INT64 = range(-(2**63), 2**63)


class ColumnTypes:
    """Finds out, value by value, which type holds all values of each column."""

    def __init__(self, count: int) -> None:
        self._seen: list[set[str]] = [set() for _ in range(count)]

    def see(self, row: Sequence[Any]) -> None:
        """Look at one row."""
        for seen, value in zip(self._seen, row, strict=True):
            seen.add(_kind(value))

    def types(self) -> list[str]:
        """Return `int`, `float`, `bool` or `string` for each column.

        NaN and infinities are told from other texts by their company: numbers. Whole numbers and
        others together are floats, anything else mixed is text.
        """
        return [_type(seen - {"null"}) for seen in self._seen]


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if value in INT64 else "string"
    if isinstance(value, float):
        return "float"
    return "number text" if isinstance(value, str) and value in NUMBERS else "string"


def _type(kinds: set[str]) -> str:
    if kinds == {"int"} or kinds == {"bool"}:
        return kinds.copy().pop()
    if kinds & {"int", "float"} and kinds <= {"int", "float", "number text"}:
        return "float"
    return "string"


def require_pyarrow() -> None:
    """Raise Unavailable when pyarrow is not there."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise Unavailable(
            "parquet needs pyarrow, which is not installed; nothing was written",
            hint="pip install 'pyarrow>=14', or say --format csv",
        ) from error


def write_parquet(
    file: BinaryIO, names: Sequence[str], types: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Write rows as one parquet file, a piece at a time.

    Args:
        file: Open for writing; it is left open.
        names: Of the columns.
        types: As `ColumnTypes` found them.
        rows: One value for each column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    known = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "string": pa.string()}
    columns_of = zip(map(_text, names), types, strict=True)
    schema = pa.schema([(name, known[type_]) for name, type_ in columns_of])
    with pq.ParquetWriter(file, schema) as writer:
        for batch in _batches(rows):
            columns = [
                pa.array([_as(type_, row[i]) for row in batch], type=known[type_])
                for i, type_ in enumerate(types)
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _batches(rows: Iterable[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    remaining = iter(rows)
    while batch := list(islice(remaining, ROWS_AT_ONCE)):
        yield batch


def _as(type_: str, value: Any) -> Any:
    if value is None:
        return None
    if type_ == "float":
        return NUMBERS[value] if isinstance(value, str) else float(value)
    if type_ == "string":
        return _text(value if isinstance(value, str) else json.dumps(value))
    return value


def _text(text: str) -> str:
    """Return a text without halves of surrogates, which are none there."""
    return text.encode("utf-8", "replace").decode("utf-8")
