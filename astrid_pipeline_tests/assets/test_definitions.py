"""The asset graph as a whole: what exists, how it is described, what depends on what."""

from __future__ import annotations

import subprocess
import sys

import dagster as dg
import pytest

from astrid_pipeline.definitions import build_defs
from astrid_pipeline.errors import ReadError, ServiceError

NIGHTLY = {
    "observations",
    "calibrated_frames",
    "difference_images",
    "candidates",
    "detections",
    "alerts",
    "stamps",
    "light_curves",
    "gold_standard",
    "injections",
    "training_samples",
    "night_summary",
    "survey_alerts",
    "alert_stamps",
}
MODELS = {"training_dataset", "unet", "real_bogus", "classical", "ensemble", "evaluation"}
LOOP = {"labelled_peaks", "label_challenger", "label_verdict"}
WHOLE = {"survey_summary", "data_health"}


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    return build_defs()


@pytest.fixture(scope="module")
def graph(definitions):
    return definitions.resolve_asset_graph()


def key(name: str) -> dg.AssetKey:
    return dg.AssetKey(name)


def test_every_asset_of_the_design_is_there(graph):
    names = {k.to_user_string() for k in graph.get_all_asset_keys()}
    assert names == NIGHTLY | MODELS | LOOP | WHOLE | {
        "master_calibrations",
        "reference_images",
        "reference_dataset",
    }


def test_partitions_are_field_and_night(graph):
    for name in NIGHTLY:
        definition = graph.get(key(name)).partitions_def
        assert isinstance(definition, dg.MultiPartitionsDefinition)
        assert {d.name for d in definition.partitions_defs} == {"field", "night"}
    masters = graph.get(key("master_calibrations")).partitions_def
    assert {d.name for d in masters.partitions_defs} == {"instrument", "night"}
    assert isinstance(graph.get(key("reference_images")).partitions_def, dg.DynamicPartitionsDefinition)
    for name in MODELS | LOOP:
        assert graph.get(key(name)).partitions_def is None


def test_every_asset_describes_itself(graph):
    for k in graph.get_all_asset_keys():
        node = graph.get(k)
        assert node.description, k
        assert node.owners == ["team:astrid"], k
        assert node.kinds, k
        assert node.group_name in {"images", "finds", "review", "learning", "evaluation"}, k
        assert node.code_version, k
        assert "stage" in node.tags, k


def test_tables_declare_their_columns(graph):
    for name in (
        "observations",
        "candidates",
        "detections",
        "alerts",
        "injections",
        "night_summary",
        "training_dataset",
    ):
        schema = graph.get(key(name)).metadata["dagster/column_schema"]
        assert len(schema.columns) > 5
        assert all(column.description for column in schema.columns)


def test_the_way_of_the_data(graph):
    def parents(name: str) -> set[str]:
        return {k.to_user_string() for k in graph.get(key(name)).parent_keys}

    assert parents("calibrated_frames") == {"observations", "master_calibrations"}
    assert parents("reference_images") == {"calibrated_frames"}
    assert parents("difference_images") == {"calibrated_frames", "reference_images"}
    assert parents("candidates") == {"difference_images"}
    assert parents("detections") == {"observations", "difference_images", "candidates"}
    assert parents("unet") == {"training_dataset"}
    assert parents("ensemble") == {"unet", "real_bogus", "classical"}


def test_inference_and_training_ask_for_a_gpu(definitions):
    for name in ("detections", "injections", "unet", "evaluation"):
        assets = next(a for a in definitions.assets if key(name) in a.keys)
        assert assets.op.pool == "gpu"
        assert assets.op.tags["dagster-celery/queue"] == "gpu"
        assert "nvidia.com/gpu" in assets.op.tags["dagster-k8s/config"]


def test_jobs_resolve(definitions):
    for name in (
        "ingest",
        "make_masters",
        "calibrate_night",
        "make_references",
        "process_night",
        "retrain",
        "learn_from_labels",
        "rescore_night",
    ):
        assert definitions.resolve_job_def(name).description


def test_resources_can_be_replaced():
    from astrid_pipeline.resources.store import StoreResource

    other = StoreResource(url="/tmp/elsewhere")
    assert build_defs({"store": other}).resources["store"] is other


def test_loading_the_definitions_loads_no_torch():
    """A code server and each run pay for what is imported here."""
    code = (
        "import sys, astrid_pipeline.definitions; print('torch' in sys.modules, 'photutils' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("room", ["imaging", "learning", "simulation", "archives", "night"])
def test_the_science_does_not_know_dagster_or_the_database(room):
    code = (
        "import sys, pkgutil, importlib, astrid_pipeline." + room + " as room\n"
        "for m in pkgutil.walk_packages(room.__path__, room.__name__ + '.'):\n"
        "    importlib.import_module(m.name) if not m.name.endswith('__main__') else None\n"
        "print([m for m in ('sqlalchemy', 'psycopg2', 'mlflow') if m in sys.modules])\n"
        "import ast, pathlib\n"
        "for p in pathlib.Path(room.__path__[0]).rglob('*.py'):\n"
        "    for node in ast.walk(ast.parse(p.read_text())):\n"
        "        names = [a.name for a in node.names] if isinstance(node, ast.Import) else "
        "[node.module or ''] if isinstance(node, ast.ImportFrom) else []\n"
        "        assert not any(n.split('.')[0] in ('dagster', 'sqlalchemy', 'mlflow') for n in names), (p, names)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    if room != "night":  # night takes the store, whose module is a Dagster resource too
        assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ReadError("no such folder", where="/data", remedy="make it"),
            "/data: no such folder (make it) — trying again",
        ),
        (ServiceError("status 503", where="mast"), "mast: status 503 — may go better: failed_partitions"),
        (KeyError("seeing"), "KeyError: 'seeing' (a defect, or the machine: see the trace)"),
        (
            dg.Failure("the index is damaged", allow_retries=False),
            "the index is damaged — trying again cannot help",
        ),
    ],
)
def test_a_failed_step_says_why_in_one_line(error, said):
    from astrid_pipeline.jobs import say_why

    @dg.op
    def made():
        raise error

    @dg.job(hooks={say_why})
    def night():
        made()

    with dg.DagsterInstance.ephemeral() as instance:
        result = night.execute_in_process(raise_on_error=False, instance=instance)
        assert not result.success
        told = [entry.user_message for entry in instance.all_logs(result.run_id)]
    (line,) = [text for text in told if text.startswith("WHY")]
    assert "made was not made" in line
    assert said in line


def test_every_nightly_job_says_why(definitions):
    for name in (
        "ingest",
        "make_masters",
        "calibrate_night",
        "make_references",
        "process_night",
        "take_alerts",
    ):
        job = definitions.resolve_job_def(name)
        assert {hook.name for hook in job.hook_defs} == {"say_why"}, name
