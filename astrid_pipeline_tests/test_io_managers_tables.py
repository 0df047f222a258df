"""Tables on the way to the store and back, through Dagster, on a folder and on an S3 server."""

from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from astrid_pipeline.errors import StoreError
from astrid_pipeline.io_managers import (
    ALLOW_MISSING,
    SCHEMA,
    from_parquet,
    list_partitions,
    to_parquet,
)
from astrid_pipeline.resources.store import StoreResource
from astrid_pipeline.tables import Column, TableSchema
from astrid_pipeline_tests.io_support import (
    NIGHTS,
    instance,
    local,
    managers,
    materialize,
    resource,
)

# Fixtures, found by name.
__all__ = ["instance", "local", "resource"]

SCHEMA_OF_SOURCES = TableSchema(
    "sources",
    "Sources of a test.",
    (
        Column("source_id", "string", "its name"),
        Column("mag", "float32", "brightness", "mag"),
        Column("flags", "int32", "bits"),
    ),
    sort_by=("source_id",),
)


@dg.asset(
    partitions_def=NIGHTS, io_manager_key="tables", metadata={SCHEMA: SCHEMA_OF_SOURCES}, code_version="v2"
)
def sources(context: dg.AssetExecutionContext) -> pd.DataFrame:
    night = context.partition_key.keys_by_dimension["night"]
    if night == "2026-01-03":
        return pd.DataFrame()
    return pd.DataFrame(
        {"source_id": [f"{night}-b", f"{night}-a"], "mag": [20.5, None], "flags": [1, 2], "more": ["x", "y"]}
    )


def test_tables_keep_their_schema(resource: StoreResource, instance: dg.DagsterInstance) -> None:
    import pyarrow.parquet as pq

    seen = {}

    @dg.asset(partitions_def=NIGHTS, io_manager_key="tables")
    def down(sources: pd.DataFrame) -> None:
        seen["table"] = sources

    result = materialize([sources, down], resource, instance)
    table = seen["table"]
    assert list(table.columns) == ["source_id", "mag", "flags", "more"]
    assert list(table.source_id) == ["2026-01-02-a", "2026-01-02-b"], "sorted as the schema says"
    assert [str(t) for t in table.dtypes] == ["object", "float32", "int32", "object"]
    assert np.isnan(table.mag[0])
    metadata = result.asset_materializations_for_node("sources")[0].metadata
    assert metadata["dagster/row_count"].value == 2
    store = resource.open()
    with store.open_local("sources/m31/2026-01-02.parquet") as path:
        schema = pq.read_schema(path)
    assert schema.field("mag").metadata == {b"unit": b"mag", b"description": b"brightness"}
    assert schema.metadata[b"astrid.run_id"].decode() == result.run_id
    assert schema.metadata[b"astrid.code_version"] == b"v2"
    assert list_partitions(store, "sources") == ["m31|2026-01-02"]


def test_the_same_table_has_the_same_bytes() -> None:
    table = pd.DataFrame({"source_id": ["b", "a"], "mag": [1.0, 2.0], "flags": [1, 2]})
    assert to_parquet(table, SCHEMA_OF_SOURCES) == to_parquet(table.iloc[::-1], SCHEMA_OF_SOURCES)


def test_tables_of_many_nights(local: StoreResource, instance: dg.DagsterInstance) -> None:
    seen: dict[str, Any] = {}
    everything = dg.AssetIn(partition_mapping=dg.AllPartitionMapping(), metadata={ALLOW_MISSING: True})

    @dg.asset(ins={"sources": everything}, io_manager_key="tables")
    def together(sources: pd.DataFrame) -> None:
        seen["together"] = sources

    @dg.asset(ins={"sources": everything}, io_manager_key="tables")
    def apart(sources: dict[str, pd.DataFrame]) -> None:
        seen["apart"] = sources

    assets = [sources, together, apart]
    materialize(assets, local, instance, selection=[together], night=None)
    assert list(seen["together"].columns) == SCHEMA_OF_SOURCES.names, "nothing made yet: an empty table"
    for night in ("2026-01-02", "2026-01-03", "2026-01-04"):
        materialize(assets, local, instance, selection=[sources], night=night)
    materialize(assets, local, instance, selection=[together, apart], night=None)
    assert len(seen["together"]) == 4
    assert {k: len(v) for k, v in seen["apart"].items()} == {
        "m31|2026-01-02": 2,
        "m31|2026-01-03": 0,
        "m31|2026-01-04": 2,
    }
    assert seen["apart"]["m31|2026-01-03"].dtypes["flags"] == "int32"


def test_one_run_over_a_range_of_nights(local: StoreResource, instance: dg.DagsterInstance) -> None:
    @dg.asset(
        partitions_def=dg.DailyPartitionsDefinition("2026-01-01"),
        io_manager_key="tables",
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def nightly(context: dg.AssetExecutionContext) -> dict[str, pd.DataFrame]:
        return {night: pd.DataFrame({"night": [night]}) for night in context.partition_keys}

    tags = {
        "dagster/asset_partition_range_start": "2026-01-02",
        "dagster/asset_partition_range_end": "2026-01-04",
    }
    result = dg.materialize([nightly], resources=managers(local), instance=instance, tags=tags)
    assert result.success
    assert list_partitions(local.open(), "nightly") == ["2026-01-02", "2026-01-03", "2026-01-04"]


def test_a_damaged_table_is_said(local: StoreResource, instance: dg.DagsterInstance) -> None:
    materialize([sources], local, instance)
    store = local.open()
    data = bytearray(store.get_bytes("sources/m31/2026-01-02.parquet"))
    data[10] ^= 255
    with pytest.raises(StoreError, match="cannot be read"):
        from_parquet(bytes(data), "here")
    with pytest.raises(StoreError, match="cannot be read"):
        from_parquet(b"no parquet", "here")


def test_a_column_of_the_wrong_kind_is_refused(local: StoreResource, instance: dg.DagsterInstance) -> None:
    @dg.asset(
        partitions_def=NIGHTS, io_manager_key="tables", metadata={SCHEMA: SCHEMA_OF_SOURCES}, name="sources"
    )
    def wrong() -> pd.DataFrame:
        return pd.DataFrame({"source_id": ["a"], "mag": ["bright"], "flags": [1]})

    assert not materialize([wrong], local, instance, raise_on_error=False).success
    assert list_partitions(local.open(), "sources") == []
