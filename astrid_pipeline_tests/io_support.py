"""What the tests of the IO managers share: small products, partitions, a store on a folder or an S3 server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from astrid_pipeline.imaging.frame import Difference, Frame
from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.io_managers import FrameIOManager, TableIOManager
from astrid_pipeline.resources.store import StoreResource
from astrid_pipeline_tests.s3_servers import s3_server

NIGHTS = dg.MultiPartitionsDefinition(
    {
        "field": dg.DynamicPartitionsDefinition(name="fields"),
        "night": dg.DailyPartitionsDefinition("2026-01-01"),
    }
)


def key(night: str, field: str = "m31") -> dg.MultiPartitionKey:
    return dg.MultiPartitionKey({"field": field, "night": night})


def make_frame(level: float, exposure_id: str = "e", **meta: Any) -> Frame:
    rng = np.random.default_rng(int(level))
    return Frame(
        rng.normal(level, 3.0, (64, 48)),
        variance=np.full((64, 48), 9.0),
        meta={"exposure_id": exposure_id, "mjd": 60000.0, "filter": "r", **meta},
    )


def make_difference(exposure_id: str = "e") -> Difference:
    plane = np.random.default_rng(5).normal(0, 1, (64, 48)).astype(np.float32)
    frame = make_frame(10, exposure_id)
    stamp = np.zeros((5, 5))
    stamp[2, 2] = 1.0
    return Difference(
        data=plane,
        variance=np.ones_like(plane),
        mask=frame.mask,
        psf=PSF.from_stamp(stamp),
        score=plane,
        flux=plane,
        flux_err=np.ones_like(plane),
        science=frame.data,
        reference=frame.data,
        meta={"exposure_id": exposure_id, "method": "zogy"},
    )


@pytest.fixture(params=["folder", pytest.param("moto", marks=pytest.mark.s3)])
def resource(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StoreResource]:
    if request.param == "folder":
        yield StoreResource(url=str(tmp_path / "store"))
        return
    with s3_server("moto", tmp_path) as server:
        environment = server.environment(prefix="test")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", environment["AWS_ACCESS_KEY_ID"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", environment["AWS_SECRET_ACCESS_KEY"])
        yield StoreResource(url=environment["ASTRID_STORE"], endpoint=server.endpoint)


@pytest.fixture
def local(tmp_path: Path) -> StoreResource:
    return StoreResource(url=str(tmp_path / "store"))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        made.add_dynamic_partitions("fields", ["m31", "m33"])
        yield made


def managers(store: StoreResource) -> dict[str, Any]:
    return {"frames": FrameIOManager(store=store), "tables": TableIOManager(store=store)}


def materialize(
    assets: list[Any],
    store: StoreResource,
    instance: dg.DagsterInstance,
    selection: list[Any] | None = None,
    night: str | None = "2026-01-02",
    **options: Any,
) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        assets,
        selection=selection,
        partition_key=key(night) if night else None,
        resources=managers(store),
        instance=instance,
        **options,
    )
