"""What is made when something is new: exposures in a field's archive."""

# No `from __future__ import annotations` here: Dagster reads the resources in the signature at definition.
import dagster as dg

from astrid_pipeline.archives.base import open_archive
from astrid_pipeline.errors import AstridError
from astrid_pipeline.jobs import STEP_JOBS
from astrid_pipeline.night.plan import Listing, ready_steps
from astrid_pipeline.partitions import FIELDS, INSTRUMENTS
from astrid_pipeline.resources.catalogue import CatalogueResource
from astrid_pipeline.resources.products import ProductsResource

#: Runs a tick may ask for. A tick is cut off after 60 s; this many are asked for in one or two.
MAX_RUNS_PER_TICK = 25


@dg.sensor(
    jobs=list(STEP_JOBS),
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Polls each field's archive and asks for the runs that are ready: masters, calibration, "
    "references, nights. A run key names the exposures it rests on, so nothing is done twice, and a night to "
    "which exposures have come is done again.",
)
def new_observations(
    context: dg.SensorEvaluationContext, catalogue: CatalogueResource, products: ProductsResource
) -> dg.SensorResult | dg.SkipReason:
    """Ask the planner what is ready in every field; Dagster leaves out run keys that it has seen."""
    kept = products.open()
    requests: list[dg.RunRequest] = []
    fields: set[str] = set()
    instruments: set[str] = set()
    silent: list[str] = []
    for field in catalogue.open().fields():
        try:
            archive = open_archive(field.archive)
            listing = Listing.of(archive, field)
            steps = ready_steps(archive, listing, kept)
        except AstridError as error:
            # The other fields' archives may answer; this one is asked again at the next tick.
            silent.append(f"{field.name}: {error}")
            continue
        fields.add(field.name)
        instruments |= listing.instruments
        requests += [
            dg.RunRequest(
                run_key=step.run_key,
                job_name=step.job,
                partition_key=step.partition,
                tags={"field": field.name},
            )
            for step in steps
        ]
    if silent and not requests:
        return dg.SkipReason("no run is ready, and these archives did not answer: " + "; ".join(silent))
    if silent:
        context.log.warning("these archives did not answer: " + "; ".join(silent))
    additions = [
        definition.build_add_request(sorted(new))
        for definition, names in ((FIELDS, fields), (INSTRUMENTS, instruments))
        if (new := names - set(context.instance.get_dynamic_partitions(str(definition.name))))
    ]
    return dg.SensorResult(run_requests=requests[:MAX_RUNS_PER_TICK], dynamic_partitions_requests=additions)


ALL = (new_observations,)
