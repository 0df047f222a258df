"""The loop from people's labels to a better detector: collect, train a challenger, judge it, promote it or not."""

# No `from __future__ import annotations` here: Dagster reads the annotations at definition.

import datetime as dt
import json
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
from pydantic import Field

from astrid_pipeline.assets.common import GPU_POOL, GPU_TAGS, OWNERS, number
from astrid_pipeline.catalog import loop
from astrid_pipeline.resources.catalogue import CatalogueResource
from astrid_pipeline.resources.detector import DETECTOR, DetectorResource
from astrid_pipeline.resources.products import ProductsResource
from astrid_pipeline.resources.store import Store, StoreResource, scratch_folder
from astrid_pipeline.resources.tracking import CHALLENGER, CHAMPION, Tracking
from astrid_pipeline.step_failures import tried_again
from astrid_pipeline.versions import code_version

COMMON: dict[str, Any] = {
    "group_name": "learning",
    "owners": OWNERS,
    "io_manager_key": "folders",
    "pool": GPU_POOL,
    "op_tags": GPU_TAGS,
    "code_version": code_version("learning", "night/labelled.py"),
}
_PEAKS, _FACTS, _WEIGHTS = "peaks.parquet", "facts.json", "detector.safetensors"


class LabelConfig(dg.Config):
    """Which labels are learned from."""

    name: str = Field(default="", description="name of the dataset; default: labels- and the run's id")
    days: int = Field(default=180, gt=0, description="nights that are looked back")
    max_samples: int = Field(default=10_000, gt=0, description="labelled sources at most")


@dg.asset(**COMMON, kinds={"torch", "parquet"}, tags={"stage": "dataset"})
@tried_again
def labelled_peaks(
    context: dg.AssetExecutionContext,
    config: LabelConfig,
    store: StoreResource,
    catalogue: CatalogueResource,
    products: ProductsResource,
    tracking: Tracking,
    detector: DetectorResource,
) -> Any:
    """A training dataset of people's labels, and what the champion's network sees at each of them.

    A dataset that is not fit to learn from is refused; the reason then stands here and in the night's report.
    """
    from astrid_pipeline.night.labelled import label_peaks_of, people_only
    from astrid_pipeline.review import collect

    name = config.name or f"labels-{context.run_id[:8]}"
    end = dt.datetime.now(dt.UTC).date()
    wanted = collect.Collection(
        name=name, start=end - dt.timedelta(days=config.days), end=end, max_samples=config.max_samples
    )
    catalog, opened = catalogue.open(), store.open()
    model = detector.champion()
    used = _keys_of_champion(tracking, opened)
    with (
        scratch_folder(opened) as folder,
        tracking.attempt("labelled peaks", tags={"dataset": name}, dagster_run_id=context.run_id) as attempt,
    ):
        try:
            made = collect.collect(catalog, opened, wanted, "the loop")
            samples = people_only(collect.AstridDataset(name, store=opened).samples)
            peaks = label_peaks_of(
                with_weights(samples, loop.label_shares(catalog, wanted.start, wanted.end)),
                products.open(),
                model,
                device=detector.device,
                progress=context.log.info,
            )
        except collect.RefusedError as error:
            catalog.record_training(
                loop.MODEL,
                attempt.run_id,
                status="refused",
                dagster_run_id=context.run_id,
                performance_metrics={"reason": str(error)},
                completed_at=dt.datetime.now(dt.UTC),
            )
            raise
        table = peaks.table.assign(known=peaks.table["key"].isin(used))
        table.to_parquet(folder / _PEAKS, index=False)
        facts = {"name": name, "id": made["id"], "champion": model.version, "without_peak": len(peaks.unseen)}
        (folder / _FACTS).write_text(json.dumps(facts))
        yield dg.Output(
            folder,
            metadata={
                "dataset": name,
                "labels": len(samples),
                "real": int(samples["is_anomaly"].sum()),
                "with_a_peak": len(peaks.table),
                "real_without_a_peak": int(peaks.unseen["is_anomaly"].sum()),
                "anomaly_ratio": number(made["anomaly_ratio"], 3),
                "image_quality": number(made["quality_score"], 3),
                "champion": model.version,
            },
        )


def _keys_of_champion(tracking: Tracking, store: Store) -> set[str]:
    """Return the keys of the labels that the champion has learned from."""
    from astrid_pipeline.review.collect import AstridDataset

    champion = tracking.find(DETECTOR, CHAMPION)
    if champion is None or champion.tags.get("source") != "labels":
        return set()
    return set(AstridDataset(champion.tags["dataset"], store=store).samples["key"])


def with_weights(samples: pd.DataFrame, labelled: dict[str, int]) -> pd.DataFrame:
    """Return the samples with the `weight` that undoes what stratifying left out of the larger class.

    Parameters
    ----------
    labelled:
        How many sources of the window people agree on, by `real` and `bogus`.
    """
    real = samples["is_anomaly"].astype(bool)
    shares = {
        True: labelled["real"] / max(int(real.sum()), 1),
        False: labelled["bogus"] / max(int((~real).sum()), 1),
    }
    return samples.assign(weight=[max(shares[bool(value)], 1.0) for value in real])


@dg.asset(**COMMON, kinds={"scikit-learn", "safetensors"}, tags={"stage": "train"})
@tried_again
def label_challenger(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    tracking: Tracking,
    detector: DetectorResource,
    labelled_peaks: Path,
) -> Any:
    """The champion, corrected by people's labels; registered as challenger."""
    from astrid_pipeline.learning.correction import fit_correction
    from astrid_pipeline.learning.second_stage import real_bogus_features

    table = pd.read_parquet(labelled_peaks / _PEAKS)
    facts = json.loads((labelled_peaks / _FACTS).read_text())
    champion = detector.champion()
    base = champion.replace(correction=None)
    with (
        scratch_folder(store.open()) as folder,
        tracking.attempt(
            "label challenger",
            params={"labels": len(table), "champion": champion.version},
            tags={"dataset": facts["name"]},
            dagster_run_id=context.run_id,
        ) as attempt,
    ):
        correction = fit_correction(
            table,
            table["is_anomaly"],
            base.score(table)["score"],
            real_bogus_features(),
            groups=table["piece"],
            weight=table["weight"],
        )
        challenger = base.replace(correction=correction, version=context.run_id[:8])
        challenger.save(folder / _WEIGHTS)
        tags = {"dataset": facts["name"], "source": "labels"}
        model = tracking.register(DETECTOR, folder, attempt.run_id, alias=CHALLENGER, tags=tags)
        (folder / _FACTS).write_text(
            json.dumps(
                {
                    **facts,
                    "version": model.version,
                    "trees": 0 if correction is None else correction.facts["trees"],
                }
            )
        )
        yield dg.Output(
            folder,
            metadata={
                "labels": len(table),
                "trees": 0 if correction is None else int(correction.facts["trees"]),
                "registered": f"{model.name} version {model.version} ({CHALLENGER})",
            },
        )


@dg.asset(**COMMON, kinds={"scikit-learn"}, tags={"stage": "evaluate"})
@tried_again
def label_verdict(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    catalogue: CatalogueResource,
    products: ProductsResource,
    tracking: Tracking,
    detector: DetectorResource,
    labelled_peaks: Path,
    label_challenger: Path,
) -> Any:
    """Challenger and champion on labels that each was fitted without, and on injections; the better one detects.

    Promoted only where its average precision is better beyond the interval, where it finds as many of the nights'
    injections, and where nobody holds the loop.
    """
    from astrid_pipeline.learning import load_model
    from astrid_pipeline.learning.correction import judge_correction
    from astrid_pipeline.learning.second_stage import real_bogus_features
    from astrid_pipeline.night.labelled import injections_kept

    table = pd.read_parquet(labelled_peaks / _PEAKS)
    facts = json.loads((label_challenger / _FACTS).read_text())
    catalog, champion = catalogue.open(), detector.champion()
    challenger = load_model(label_challenger / _WEIGHTS)
    base = champion.replace(correction=None)
    verdict, held_out = judge_correction(
        table,
        table["is_anomaly"],
        base.score(table)["score"],
        real_bogus_features(),
        groups=table["piece"],
        weight=table["weight"],
        champion=champion.score(table)["score"],
        judged=~table["known"],
    )
    kept = injections_kept(challenger, champion, products.open(), device=detector.device)
    held = loop.held(catalog)
    promoted = verdict.promoted and kept.passed and held is None
    reason = "; ".join([verdict.reason, str(kept), *([f"but {held}"] if held and verdict.promoted else [])])
    status = (
        "promoted" if promoted else "held" if held and verdict.promoted and kept.passed else "not promoted"
    )
    with (
        scratch_folder(store.open()) as folder,
        tracking.attempt(
            "label verdict",
            tags={"promoted": promoted, "reason": reason, "dataset": facts["name"]},
            dagster_run_id=context.run_id,
        ) as attempt,
    ):
        attempt.log_metrics(verdict.flat())
        if promoted:
            tracking.set_alias(DETECTOR, CHAMPION, facts["version"])
        catalog.record_training(
            loop.MODEL,
            attempt.run_id,
            status=status,
            dataset=facts["name"],
            model_version=f"{DETECTOR}-{facts['version']}",
            dagster_run_id=context.run_id,
            training_params={"labels": len(table), "trees": facts["trees"], "champion": champion.version},
            performance_metrics={**verdict.flat(), "reason": reason},
            completed_at=dt.datetime.now(dt.UTC),
        )
        scores = table[["key", "is_anomaly", "score"]].assign(held_out=held_out)
        scores.to_csv(folder / "scores.csv", index=False)
        yield dg.Output(
            folder,
            metadata={
                "promoted": promoted,
                "reason": reason,
                "ap_before": str(verdict.before),
                "ap_after": str(verdict.after),
                "gain": str(verdict.gain),
                "injections": str(kept),
                "held": "no" if held is None else str(held),
            },
        )
