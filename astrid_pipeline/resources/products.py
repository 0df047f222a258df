"""Looking at products that the run itself does not depend on by partition: which nights are there, one frame.

References and masters choose their inputs among what exists, so Dagster cannot hand them over: the choice is
part of the work.
"""

# No `from __future__ import annotations` here: Dagster reads the resource fields' types at class creation.
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from astrid_pipeline.imaging.calibrate import MasterCalibration
from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.io_managers import from_parquet, list_partitions, partition_path
from astrid_pipeline.resources.folders import get_folder
from astrid_pipeline.resources.frames import StoredFrames
from astrid_pipeline.resources.store import Store, StoreResource


class Products:
    """Read access to what the IO managers have written.

    Parameters
    ----------
    store:
        The store that they write to.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def nights(self, asset: str, owner: str) -> list[str]:
        """Return the nights of a field (or instrument) that are whole in the store, sorted."""
        prefix = f"{owner}|"
        return [key.removeprefix(prefix) for key in list_partitions(self.store, asset, first=owner)]

    def frames(self, asset: str, owner: str, night: str | None = None) -> StoredFrames:
        """Return an asset's exposures of a night (or of a field), each read when it is asked for.

        Raises
        ------
        MissingProductError
            If the partition was never made.
        """
        return StoredFrames(
            self.store, partition_path(dg.AssetKey(asset), owner if night is None else f"{owner}|{night}")
        )

    def frame(self, asset: str, owner: str, night: str, exposure_id: str) -> Frame:
        """Return one exposure."""
        return self.frames(asset, owner, night)[exposure_id]

    def metas(self, asset: str, owner: str, night: str | None = None) -> dict[str, dict[str, Any]]:
        """Return the plain meta of each exposure of a partition, without reading pixels."""
        frames = self.frames(asset, owner, night)
        return {name: frames.meta(name) for name in frames}

    def masters(self, instrument: str, night: str) -> MasterCalibration:
        """Return the master frames of an instrument and night."""
        return self.frames("master_calibrations", instrument, night)["product"]

    def table(self, asset: str, partition: str | None) -> pd.DataFrame:
        """Return a table asset's partition.

        Raises
        ------
        MissingProductError
            If it was never made.
        """
        key = f"{partition_path(dg.AssetKey(asset), partition)}.parquet"
        return from_parquet(self.store.get_bytes(key), self.store.location(key))

    def folder(self, asset: str, partition: str | None = None) -> Path:
        """Return a local folder with a folder product's files, to be read only."""
        return get_folder(self.store, partition_path(dg.AssetKey(asset), partition))

    def partitions(self, asset: str) -> list[str]:
        """Return all partition keys of an asset that are whole in the store, sorted."""
        return list_partitions(self.store, asset)


class ProductsResource(dg.ConfigurableResource):
    """The products in the store, for assets that choose among them."""

    store: dg.ResourceDependency[StoreResource]

    def open(self) -> Products:
        """Return read access to the products."""
        return Products(self.store.open())
