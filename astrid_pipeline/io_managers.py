"""How assets' values are kept: frames as FITS files with an index, tables as Parquet.

Layout in the store: `<asset>/<field>/<night>/<exposure>.<token>.fits` with `index.json` beside them, and
`<asset>/<field>/<night>.parquet`. A product becomes visible with the one object that is written last (the index,
or the table itself); a process killed before leaves the older product whole. Making a partition again writes new
files under a new token, swaps the index, and only then removes the older files, so that a reader finds one or
the other.
"""

# No `from __future__ import annotations` here: Dagster reads the resource fields' types at class creation.
import datetime
import io as bytes_io
import typing
import uuid
from collections.abc import Mapping
from typing import Any

import dagster as dg
import pandas as pd
from dagster._core.errors import DagsterInvariantViolationError
from pydantic import Field

from astrid_pipeline.errors import MissingProductError
from astrid_pipeline.resources.frames import (
    INDEX,
    Frames,
    FrameSpool,
    Index,
    IndexEntry,
    JoinedFrames,
    StoredFrames,
    file_name,
    plain_meta,
    read_index,
    write_product,
)
from astrid_pipeline.resources.store import Store, StoreResource, damaged, scratch_folder
from astrid_pipeline.step_failures import telling_dagster
from astrid_pipeline.tables import TableSchema

#: Asset metadata: the `TableSchema` that the table satisfies.
SCHEMA = "astrid/schema"
#: Input metadata (`AssetIn(metadata={ALLOW_MISSING: True})`): pass over partitions that were never made.
ALLOW_MISSING = "astrid/allow_missing"


def partition_path(asset_key: dg.AssetKey, partition_key: str | None) -> str:
    """Return where a partition of an asset is kept: `asset/field/night`; dimensions in the order of their names."""
    parts = [file_name(part) for part in asset_key.path]
    if partition_key is not None:
        keys = (
            [key for _, key in sorted(partition_key.keys_by_dimension.items())]
            if isinstance(partition_key, dg.MultiPartitionKey)
            else partition_key.split("|")
        )
        parts += [file_name(key) for key in keys]
    return "/".join(parts)


def list_partitions(store: Store, asset: str, first: str | None = None) -> list[str]:
    """Return the partition keys (`field|night`, …) of an asset that are whole in the store, sorted.

    With `first`, only those whose first dimension has that value: the rest of the store is not looked at.
    """
    from urllib.parse import unquote

    folder = file_name(asset) if first is None else f"{file_name(asset)}/{file_name(first)}"
    paths = [entry.key.split("/")[1:] for entry in store.list(folder)]
    # A product with an index is one partition; tables among its files are not partitions of their own.
    found = {tuple(path[:-1]) for path in paths if path[-1] == INDEX}
    for path in paths:
        inside = any(tuple(path[:depth]) in found for depth in range(len(path)))
        if path[-1].endswith(".parquet") and not inside:
            found.add((*path[:-1], path[-1].removesuffix(".parquet")))
    return sorted("|".join(unquote(part) for part in path) for path in found)


class _PartitionedIOManager(dg.ConfigurableIOManager):
    """What frames and tables share: partitions, missing inputs, permanent failures."""

    store: dg.ResourceDependency[StoreResource]
    root: str = Field(default="", description="Folder within the store that all products go below.")

    def _path(self, asset_key: dg.AssetKey, partition_key: str | None) -> str:
        path = partition_path(asset_key, partition_key)
        return f"{self.root.strip('/')}/{path}" if self.root.strip("/") else path

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Write the value of one partition, or of several: a mapping by partition key."""
        if obj is None:
            return
        values: dict[str | None, Any] = {None: obj}
        if context.has_asset_partitions:
            values = _by_partition(context, list(context.asset_partition_keys), obj)
        with telling_dagster(_attempt(context)):
            for key, value in values.items():
                metadata = self.write(context, self._path(context.asset_key, key), key, value)
        if len(values) == 1:
            context.add_output_metadata(metadata)

    def load_input(self, context: dg.InputContext) -> Any:
        """Read the value, or the values, that the input's annotation asks for."""
        keys: list[str | None] = (
            list(context.asset_partition_keys) if context.has_asset_partitions else [None]
        )
        tolerant = bool((context.definition_metadata or {}).get(ALLOW_MISSING))
        parts: dict[str | None, Any] = {}
        with telling_dagster(_attempt(context)):
            for key in keys:
                try:
                    parts[key] = self.read(context, self._path(context.asset_key, key))
                except MissingProductError as error:
                    if not tolerant:
                        raise MissingProductError(
                            f"partition {key!r} was not made" if key else "was not made",
                            where=f"{context.asset_key.to_user_string()} ({error.where})",
                            remedy=error.remedy,
                        ) from error
            return self.combine(context, parts, _wanted_type(context))

    def write(self, context: dg.OutputContext, path: str, key: str | None, obj: Any) -> dict[str, Any]:
        """Keep the value below `path`; return metadata for the materialization."""
        raise NotImplementedError

    def read(self, context: dg.InputContext, path: str) -> Any:
        """Return the value below `path`."""
        raise NotImplementedError

    def combine(self, context: dg.InputContext, parts: dict[str | None, Any], wanted: Any) -> Any:
        """Return what the input's annotation `wanted` asks for, from the values of its partitions."""
        raise NotImplementedError


def _attempt(context: dg.InputContext | dg.OutputContext) -> int | None:
    """Return how many times the step was tried before; None where a value is loaded outside of any step."""
    try:
        return int(context.step_context.previous_attempt_count)
    except DagsterInvariantViolationError:
        return None


def _by_partition(context: dg.OutputContext, keys: list[str], obj: Any) -> dict[str | None, Any]:
    if len(keys) == 1:
        return {keys[0]: obj}
    if isinstance(obj, Mapping) and set(obj) == set(keys):
        # The context's own keys know their dimensions; the mapping's may be plain strings.
        return {key: obj[key] for key in keys}
    raise dg.Failure(
        description=f"{context.asset_key.to_user_string()}: a run of {len(keys)} partitions must give a "
        "mapping from partition key to value",
        allow_retries=False,
    )


def _wanted_type(context: dg.InputContext) -> Any:
    return context.dagster_type.typing_type if context.dagster_type is not None else None


def _is_mapping_of_mappings(wanted: Any) -> bool:
    values = typing.get_args(wanted)[1:]
    return bool(values) and _is_mapping(values[0])


def _is_mapping(wanted: Any) -> bool:
    origin = typing.get_origin(wanted) or wanted
    return isinstance(origin, type) and issubclass(origin, Mapping)


class FrameIOManager(_PartitionedIOManager):
    """Keeps exposures: a mapping exposure id → Frame or Difference (or one Frame, Difference, MasterCalibration).

    An input annotated `Frames` reads each exposure when it is asked for; several partitions become one mapping.
    `dict[str, Frame]` reads all at once. `dict[str, Frames]` keeps partitions apart, by partition key.
    """

    def write(self, context: dg.OutputContext, path: str, key: str | None, obj: Any) -> dict[str, Any]:
        """Write new files, swap the index, remove the older files."""
        store = self.store.open()
        token = uuid.uuid4().hex[:12]
        single = not isinstance(obj, Mapping)
        exposures: Mapping[str, Any] = {"product": obj} if single else obj
        entries: dict[str, IndexEntry] = {}
        for name in exposures:
            target = f"{path}/{file_name(name)}.{token}.fits"
            entries[name] = _put_exposure(store, target, exposures, name)
        index = Index(
            asset=context.asset_key.to_user_string(),
            partition=key or "",
            run_id=context.run_id,
            code_version=_code_version(context),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            entries=entries,
            single=single,
        )
        # Looked at as late as can be: what another run of this partition has finished meanwhile is older too.
        try:
            before = read_index(store, path)
        except MissingProductError:
            before = None
        store.put_bytes(f"{path}/{INDEX}", index.dump())
        if before is not None:
            store.delete(entry.key for entry in before.entries.values())
        if isinstance(obj, FrameSpool):
            obj.close()
        return {
            "exposures": len(entries),
            "size": dg.MetadataValue.int(sum(entry.size for entry in entries.values())),
            "path": dg.MetadataValue.path(store.location(f"{path}/{INDEX}")),
        }

    def read(self, context: dg.InputContext, path: str) -> Any:
        """Return the product, its pixels not read yet (a single one is read)."""
        frames = StoredFrames(self.store.open(), path)
        return frames["product"] if frames.index.single else frames

    def combine(self, context: dg.InputContext, parts: dict[str | None, Any], wanted: Any) -> Any:
        """Return one mapping of all exposures, or a mapping by partition where that is asked for."""
        if _is_mapping_of_mappings(wanted):
            return {str(key): _materialized(part, typing.get_args(wanted)[1]) for key, part in parts.items()}
        if any(not isinstance(part, Frames) for part in parts.values()):
            if len(parts) == 1 and not _is_mapping(wanted):
                return next(iter(parts.values()))
            return {str(key): part for key, part in parts.items()}
        if not parts and not _is_mapping(wanted):
            return JoinedFrames([])
        frames = next(iter(parts.values())) if len(parts) == 1 else JoinedFrames(list(parts.values()))
        return _materialized(frames, wanted)


def _materialized(frames: Any, wanted: Any) -> Any:
    # Dagster checks `dict[...]` and `Mapping[...]` annotations against a real dict.
    origin = typing.get_origin(wanted)
    return dict(frames) if origin is not None and origin is not Frames else frames


def _put_exposure(store: Store, target: str, exposures: Mapping[str, Any], name: str) -> IndexEntry:
    if isinstance(exposures, FrameSpool):
        path, kind, meta = exposures.file(name)
        stored = store.put_file(target, path)
    else:
        value = exposures[name]
        meta = plain_meta(value)
        with scratch_folder(store) as folder:
            path = folder / "product.fits"
            kind = write_product(value, path)
            del value
            stored = store.put_file(target, path)
    return IndexEntry(key=stored.key, sha256=stored.sha256 or "", size=stored.size, kind=kind, meta=meta)


def _code_version(context: dg.OutputContext) -> str:
    step = context.step_context
    return str(step.job_def.asset_layer.get(context.asset_key).code_version or "")


class TableIOManager(_PartitionedIOManager):
    """Keeps DataFrames as Parquet with the types, units and descriptions of the asset's `TableSchema`.

    The asset names its schema in its metadata: `metadata={"astrid/schema": CANDIDATES}`. An input annotated
    `pandas.DataFrame` gets several partitions one below the other; `dict[str, pandas.DataFrame]` by partition key.
    """

    def write(self, context: dg.OutputContext, path: str, key: str | None, obj: Any) -> dict[str, Any]:
        """Write the table in one piece."""
        if not isinstance(obj, pd.DataFrame):
            raise TypeError(
                f"{context.asset_key.to_user_string()} gave {type(obj).__name__}, not a DataFrame"
            )
        store = self.store.open()
        schema = schema_of(context.definition_metadata)
        provenance = {
            "run_id": context.run_id,
            "code_version": _code_version(context),
            "partition": key or "",
        }
        stored = store.put_bytes(f"{path}.parquet", to_parquet(obj, schema, provenance))
        return {
            "dagster/row_count": len(obj),
            "size": dg.MetadataValue.int(stored.size),
            "path": dg.MetadataValue.path(store.location(f"{path}.parquet")),
        }

    def read(self, context: dg.InputContext, path: str) -> Any:
        """Return the table."""
        store = self.store.open()
        return from_parquet(store.get_bytes(f"{path}.parquet"), store.location(f"{path}.parquet"))

    def combine(self, context: dg.InputContext, parts: dict[str | None, Any], wanted: Any) -> Any:
        """Return the tables one below the other, or by partition where a mapping is asked for."""
        if _is_mapping(wanted):
            return {str(key): part for key, part in parts.items()}
        filled = [part for part in parts.values() if len(part)]
        if len(filled) == 1:
            return filled[0]
        if filled:
            return pd.concat(filled, ignore_index=True)
        if parts:
            return next(iter(parts.values()))
        upstream = context.upstream_output.definition_metadata if context.upstream_output else {}
        schema = schema_of(upstream)
        return schema.empty() if schema is not None else pd.DataFrame()


def schema_of(metadata: Mapping[str, Any] | None) -> TableSchema | None:
    """Return the `TableSchema` that an asset's metadata names, or None."""
    value = (metadata or {}).get(SCHEMA)
    value = getattr(value, "instance", getattr(value, "value", value))
    return value if isinstance(value, TableSchema) else None


def to_parquet(
    table: pd.DataFrame, schema: TableSchema | None = None, provenance: Mapping[str, str] | None = None
) -> bytes:
    """Return the table as Parquet, conforming to `schema` (columns it does not know are kept at the end)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if schema is None:
        arrow = pa.Table.from_pandas(table, preserve_index=False)
    else:
        conformed = schema.conform(table, extra=True)
        known = schema.arrow()
        extra = pa.Schema.from_pandas(conformed.drop(columns=schema.names), preserve_index=False)
        full = pa.schema([*known, *extra], metadata=known.metadata)
        arrow = pa.Table.from_pandas(conformed, schema=full, preserve_index=False)
    notes = {
        **(arrow.schema.metadata or {}),
        **{f"astrid.{name}": v for name, v in (provenance or {}).items()},
    }
    buffer = bytes_io.BytesIO()
    pq.write_table(arrow.replace_schema_metadata(notes), buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def from_parquet(data: bytes, where: str) -> pd.DataFrame:
    """Return the table from Parquet, its pages' checksums verified.

    Raises
    ------
    StoreError
        If the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(pa.BufferReader(data), page_checksum_verification=True).to_pandas()
    except (pa.ArrowInvalid, OSError) as error:
        raise damaged(where, f"the table cannot be read: {error}") from error
