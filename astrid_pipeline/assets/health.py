"""How the survey stands, for whoever is on call: all nights in one table, and the health of the data."""

# No `from __future__ import annotations` here: Dagster reads the annotations at definition.

import datetime as dt
import time
from collections.abc import Mapping
from pathlib import Path

import dagster as dg
import pandas as pd

from astrid_pipeline.assets.common import CPU_TAGS, OWNERS, number, preview, table_metadata
from astrid_pipeline.assets.summary import night_summary
from astrid_pipeline.errors import AstridError
from astrid_pipeline.night.health import SURVEY_SUMMARY
from astrid_pipeline.resources.catalogue import CatalogueResource
from astrid_pipeline.resources.detector import DetectorResource
from astrid_pipeline.resources.products import ProductsResource
from astrid_pipeline.settings import get_settings
from astrid_pipeline.step_failures import tried_again
from astrid_pipeline.versions import code_version


@dg.asset(
    deps=[dg.AssetDep(night_summary, partition_mapping=dg.AllPartitionMapping())],
    group_name="evaluation",
    owners=OWNERS,
    kinds={"parquet"},
    op_tags=CPU_TAGS,
    tags={"stage": "summary"},
    metadata=table_metadata(SURVEY_SUMMARY),
    io_manager_key="tables",
    code_version=code_version("night/health.py"),
    # Any night that was made makes this again. `eager` would wait until every night of every field is there.
    automation_condition=dg.AutomationCondition.any_deps_updated().since_last_handled()
    & ~dg.AutomationCondition.in_progress(),
)
@tried_again
def survey_summary(
    catalogue: CatalogueResource, products: ProductsResource
) -> dg.MaterializeResult[pd.DataFrame]:
    """All fields in one table: nights made, exposures, detections, how much of what was put in was found again."""
    from astrid_pipeline.night.health import survey_summary as summarise

    table = summarise(catalogue.open().fields(), products.open())
    return dg.MaterializeResult(
        value=table,
        metadata={
            "fields": len(table),
            "nights": int(table.nights.sum()),
            "exposures": int(table.exposures.sum()),
            "detections": int(table.detections.sum()),
            "recovered_percent": number(100 * table.recovered.sum() / max(int(table.injected.sum()), 1), 1),
            "objects_injected": int(table.objects.sum()),
            "objects_found": int(table.objects_found.sum()),
            "objects_followed": int(table.objects_followed.sum()),
            "table": preview(table, [column.name for column in SURVEY_SUMMARY.columns], rows=50),
        },
    )


_CHECKS = {
    "archives_answer": "Every field's archive answers.",
    "nights_made": "Every night with exposures, older than three days, was made.",
    "files_whole": "A daily sample of raw files in the store are the bytes that were fetched.",
    "disk_space": "The disks have room for another night.",
    "recent_images": "The images of the last 7 nights are of a quality of 0.8 or more.",
    "recent_labels": "People who labelled the same sources in the last 7 days agree on 0.8 of them or more.",
    "no_lasting_drift": "No field's last three nights differ alike from the champion's training, or its own before.",
    "canary_sings": "The champion finds in two skies that never change what it found there when it was made.",
    "alert_sent": "What is wrong was told where ASTRID_ALERT_WEBHOOK and ASTRID_ALERT_EMAIL say.",
}
#: Of the images' quality and the labels' agreement: what was the best decile a year ago has lost a fifth.
LEAST_RECENT = 0.8
RECENT_DAYS = 7


@dg.asset(
    group_name="evaluation",
    owners=OWNERS,
    kinds={"python"},
    op_tags=CPU_TAGS,
    tags={"stage": "summary"},
    check_specs=[
        dg.AssetCheckSpec(name, asset="data_health", description=text) for name, text in _CHECKS.items()
    ],
    code_version=code_version("night/health.py", "night/data_quality.py"),
)
@tried_again
def data_health(
    catalogue: CatalogueResource, products: ProductsResource, detector: DetectorResource
) -> dg.MaterializeResult:
    """Whether archives answer, nights are made, files are whole, disks have room, images and labels are still good.

    What is wrong fails its check, and is told by webhook and e-mail (ASTRID_ALERT_WEBHOOK, ASTRID_ALERT_EMAIL).
    """
    from astrid_pipeline.catalog import labels
    from astrid_pipeline.learning.canary import canary, canary_differs
    from astrid_pipeline.night import data_quality, drift, health

    catalog, kept, started = catalogue.open(), products.open(), time.perf_counter()
    fields = catalog.fields()
    today = dt.datetime.now(dt.UTC).date()
    damaged, read = health.damaged_files(fields, kept, seed=today.toordinal())
    images = data_quality.recent_quality(fields, kept, today, RECENT_DAYS)
    since = dt.datetime.now(dt.UTC) - dt.timedelta(days=RECENT_DAYS)
    agreement, shared = labels.agreement(catalog, since)
    settings = get_settings()
    folders = {"home": settings.home}
    if not settings.store_url.startswith("s3://"):
        folders["store"] = Path(settings.store_url)
    found = {
        "archives_answer": (
            health.silent_archives(fields),
            "see the archive's status page; polling goes on by itself",
        ),
        "nights_made": (
            health.late_nights(fields, kept, today),
            "look at the sensors new_observations and failed_partitions, or run `astrid backfill`",
        ),
        "files_whole": (
            damaged,
            "remove the file from the store and materialize observations of that night again",
        ),
        "disk_space": (health.full_disks(folders), "make room, or set ASTRID_STORE to a larger place"),
        "recent_images": (
            data_quality.poor_fields(images, LEAST_RECENT),
            "look at the nights' frames: focus, clouds, a new mask; a dataset of them may be refused",
        ),
        "recent_labels": (
            {}
            if agreement is None or agreement >= LEAST_RECENT
            else {"labels": f"{agreement:.0%} agreement over {shared} sources that two or more labelled"},
            "settle the disputed queue, and look at the scan report's completeness and purity",
        ),
    }
    champion = detector.champion()
    found["no_lasting_drift"] = (
        drift.lasting_drift(fields, kept, champion.facts.get("baseline", {})),
        "train on this survey's own nights: the job retrain, or wait for the nightly schedule",
    )
    noted = champion.facts.get("canary")
    differs = None if noted is None else canary_differs(canary(champion, device=detector.device), noted)
    found["canary_sings"] = (
        {} if differs is None else {f"{champion.name} {champion.version}": differs},
        "detections of tonight cannot be trusted: look for a new driver, library or processor, or load the model anew",
    )
    found["alert_sent"] = (_tell(found), "check the addresses: nobody was told of what is wrong")
    return dg.MaterializeResult(
        metadata={
            "fields": len(fields),
            "files_read": read,
            "recent_images": len(images),
            "recent_quality": number(images["quality"].mean() if len(images) else None, 3),
            "labels_of_two_or_more": shared,
            "agreement": number(agreement, 3),
            "wrong": sum(len(bad) for bad, _ in found.values()),
            "seconds": number(time.perf_counter() - started, 2),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name=name,
                passed=not bad,
                severity=dg.AssetCheckSeverity.ERROR,
                description="; ".join(f"{key}: {value}" for key, value in bad.items()) + f" — {remedy}"
                if bad
                else None,
            )
            for name, (bad, remedy) in found.items()
        ],
    )


def _tell(found: Mapping[str, tuple[Mapping[str, str], str]]) -> dict[str, str]:
    """Send what is wrong to whom the settings name; return why it could not be sent."""
    from astrid_pipeline.services.notify import alert

    lines = [
        f"{name}: {key}: {value} — {remedy}"
        for name, (bad, remedy) in found.items()
        for key, value in bad.items()
    ]
    if not lines:
        return {}
    try:
        alert(f"AstrID: {len(lines)} things are wrong with the data", "\n".join(lines))
    except AstridError as error:
        return {"alert": str(error)}
    return {}
