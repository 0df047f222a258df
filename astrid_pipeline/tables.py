"""Tables with a declared schema: the name, type, unit and meaning of every column, in one place each.

A product that is a table is a pandas DataFrame that satisfies its `TableSchema`. The same declaration makes
the Parquet file's types, the column list on the Dagster page, and the tests' expectations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa


@dataclass(frozen=True)
class Column:
    """One column: `kind` is float64, float32, int64, int32, bool, string or binary."""

    name: str
    kind: str
    description: str
    unit: str = ""

    @property
    def arrow_type(self) -> pa.DataType:
        """The column's Arrow type."""
        return {"bool": pa.bool_(), "string": pa.string(), "binary": pa.binary()}.get(
            self.kind
        ) or pa.type_for_alias(self.kind)


@dataclass(frozen=True)
class TableSchema:
    """A table's name and columns; `sort_by` makes its order, and with it its bytes, reproducible."""

    name: str
    description: str
    columns: tuple[Column, ...]
    sort_by: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Column names in order."""
        return [column.name for column in self.columns]

    def arrow(self) -> pa.Schema:
        """Return the Arrow schema; units and descriptions travel as field metadata."""
        return pa.schema(
            [
                pa.field(c.name, c.arrow_type, metadata={"unit": c.unit, "description": c.description})
                for c in self.columns
            ],
            metadata={"table": self.name, "description": self.description},
        )

    def empty(self) -> pd.DataFrame:
        """Return a table of this schema without rows."""
        return self.conform(pd.DataFrame())

    def conform(self, table: pd.DataFrame, *, extra: bool = False) -> pd.DataFrame:
        """Return `table` with exactly these columns, types and order; missing floats and strings become null.

        With `extra`, columns that the schema does not know are kept at the end.

        Raises
        ------
        ValueError
            If a column that cannot be null (int, bool) is missing from a table that has rows.
        """
        out = {}
        for column in self.columns:
            if column.name in table.columns:
                values = table[column.name]
            elif len(table) and column.kind.startswith(("int", "bool")):
                raise ValueError(f"table {self.name!r} lacks column {column.name!r}")
            else:
                values = pd.Series([None] * len(table), index=table.index, dtype=object)
            if column.kind in ("string", "binary"):
                out[column.name] = values.astype(object).where(values.notna(), None)
            elif column.kind.startswith("float"):
                out[column.name] = pd.to_numeric(values, errors="raise").astype(np.dtype(column.kind))
            else:
                out[column.name] = values.astype(np.dtype(column.kind))
        result = pd.DataFrame(out, index=table.index)
        if extra:
            for name in table.columns:
                if name not in out:
                    result[name] = table[name]
        if self.sort_by:
            result = result.sort_values(list(self.sort_by), kind="stable")
        return result.reset_index(drop=True)


def concat(schema: TableSchema, tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Return the tables one below the other; without any, the empty table of `schema`."""
    filled = [table for table in tables if len(table)]
    return schema.conform(pd.concat(filled, ignore_index=True)) if filled else schema.empty()
