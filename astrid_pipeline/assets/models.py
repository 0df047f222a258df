"""The models: a network, real/bogus, anomaly detectors, their ensemble, and what they are worth."""

# No `from __future__ import annotations` here: Dagster reads the annotations at definition.

import datetime as dt
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import pandas as pd
from pydantic import Field

from astrid_pipeline.assets.common import CPU_TAGS, GPU_POOL, GPU_TAGS, OWNERS, number, picture, preview
from astrid_pipeline.learning.dataset import SPLITS, open_split
from astrid_pipeline.learning.shards import ShardSet
from astrid_pipeline.resources.catalogue import CatalogueResource
from astrid_pipeline.resources.detector import DETECTOR, DetectorResource
from astrid_pipeline.resources.products import ProductsResource
from astrid_pipeline.resources.store import StoreResource, scratch_folder
from astrid_pipeline.resources.tracking import CHALLENGER, CHAMPION, Tracking
from astrid_pipeline.step_failures import tried_again
from astrid_pipeline.versions import code_version

COMMON: dict[str, Any] = {"group_name": "learning", "owners": OWNERS, "io_manager_key": "folders"}


class TrainingConfig(dg.Config):
    """How the network is trained."""

    mode: Literal["quick", "full", "custom"] = Field(
        default="custom", description="quick checks that training works; full and custom train"
    )
    steps: int = Field(
        default=600, gt=0, description="optimiser steps of mode custom; each sees 8 crops of 128²"
    )
    learning_rate: float = Field(
        default=5e-4,
        gt=0,
        description="a sixth of a fresh network's: the champion's knowledge is refined, not erased",
    )
    from_champion: bool = Field(
        default=True, description="go on from the champion's weights, or start from nothing"
    )
    simulated_share: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="share of simulated skies beside the nights' own; default: 0.9 with one night, none from ten on",
    )
    seed: int = Field(default=0, description="of crops, dropout and fits")
    processes: int = Field(
        default=1,
        gt=0,
        description="that train together on this machine, one a GPU; they share each step's 8 crops",
    )


def _splits(dataset: pd.DataFrame, products: ProductsResource, names: tuple[str, ...]) -> dict[str, ShardSet]:
    kept = products.open()
    folders: dict[str, Path] = {
        key: kept.folder("training_samples", key) for key in sorted(set(dataset.partition))
    }
    return {name: open_split(dataset, folders, name) for name in names}


@dg.asset(
    **COMMON,
    kinds={"torch", "safetensors"},
    pool=GPU_POOL,
    op_tags=GPU_TAGS,
    tags={"stage": "train"},
    code_version=code_version("learning"),
)
@tried_again
def unet(
    context: dg.AssetExecutionContext,
    config: TrainingConfig,
    store: StoreResource,
    products: ProductsResource,
    tracking: Tracking,
    detector: DetectorResource,
    catalogue: CatalogueResource,
    training_dataset: pd.DataFrame,
) -> Any:
    """The U-Net (about 2.1 million parameters), trained on the nights' samples from the champion's weights.

    Kept with it are its labelled peaks on the images that it was not trained on: what the other models learn
    from. Parameters, curves and energy are in MLflow.
    """
    from astrid_pipeline.learning import TrainConfig
    from astrid_pipeline.learning.dataset import shares, simulated_share, with_simulated
    from astrid_pipeline.learning.retrain import train_network
    from astrid_pipeline.report.plots import training_png

    settings = TrainConfig(
        steps=config.steps,
        learning_rate=config.learning_rate,
        seed=config.seed,
        validate_every=max(config.steps // 4, 1),
    )
    splits = _splits(training_dataset, products, ("train", "second", "held_out"))

    def progress(step: int, total: int, figures: dict[str, float]) -> None:
        if step == total or step % max(total // 10, 1) == 0:
            context.log.info(f"step {step}/{total} " + " ".join(f"{k} {v:.4g}" for k, v in figures.items()))

    nights = training_dataset["partition"].str.rpartition("|")[2].nunique()
    share = simulated_share(nights) if config.simulated_share is None else config.simulated_share

    def simulated(done: int, total: int) -> None:
        if done == total or done % 50 == 0:
            context.log.info(f"simulated {done} of {total} skies")

    with (
        scratch_folder(store.open()) as folder,
        scratch_folder(store.open()) as beside,
        tracking.attempt(
            "unet",
            params={**settings.as_dict(), "mode": config.mode, "from_champion": config.from_champion},
            tags={"dataset": str(training_dataset.name.iloc[0]), "images": len(training_dataset)},
            dagster_run_id=context.run_id,
        ) as attempt,
    ):
        splits["train"] = with_simulated(
            splits["train"], share, beside / "skies", seed=config.seed, progress=simulated
        )
        springs = shares(splits["train"].images)
        attempt.log_tags({f"images_{name}": count for name, count in springs.items()})
        result = train_network(
            splits,
            config.mode,
            settings,
            folder,
            initial=detector.champion() if config.from_champion else None,
            device=detector.device,
            progress=progress,
            processes=config.processes,
        )
        for row in result.history:
            attempt.log_metrics({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))
        attempt.log_metrics(
            {
                "joules": result.joules,
                "train_seconds": result.seconds,
                "waited_for_data": result.waited / result.seconds,
            }
        )
        attempt.log_tags({"energy_source": result.energy_source, "data_hash": result.data_hash})
        curve = training_png(result.history)
        attempt.log_bytes(curve, "curves.png")
        attempt.log_file(result.weights)
        catalogue.open().record_training(
            "unet",
            attempt.run_id,
            status="finished",
            dataset=str(training_dataset.name.iloc[0]),
            dagster_run_id=context.run_id,
            training_params={**settings.as_dict(), "mode": config.mode},
            performance_metrics={**result.best, "joules": result.joules, "seconds": result.seconds},
            completed_at=dt.datetime.now(dt.UTC),
        )
        yield dg.Output(
            folder,
            metadata={
                "parameters": result.parameters,
                "steps": result.steps,
                "images": len(splits["train"]),
                **{f"images_{name}": count for name, count in springs.items()},
                "nights": nights,
                "valid_ap": number(result.best.get("valid_ap"), 3),
                "seconds": number(result.seconds, 1),
                "waited_for_data_percent": number(100 * result.waited / result.seconds, 1),
                "joules": number(result.joules, 0),
                "energy_source": result.energy_source,
                "device": result.device,
                "mlflow_run": attempt.run_id,
                "picture": picture(curve, "training curve"),
            },
        )


class FitConfig(dg.Config):
    """How a fit is seeded."""

    seed: int = Field(default=0, description="same seed, same model")


@dg.asset(
    **COMMON,
    kinds={"scikit-learn", "safetensors"},
    op_tags=CPU_TAGS,
    tags={"stage": "train"},
    code_version=code_version("learning"),
)
@tried_again
def real_bogus(context: dg.AssetExecutionContext, config: FitConfig, store: StoreResource, unet: Path) -> Any:
    """Real or bogus: boosted trees on the network's peaks and the candidates' features."""
    from astrid_pipeline.learning.retrain import describe, train_real_bogus

    with scratch_folder(store.open()) as folder:
        model = train_real_bogus(unet, folder, seed=config.seed)
        yield dg.Output(folder, metadata={**describe(model), "features": len(model.features)})


@dg.asset(
    **COMMON,
    kinds={"scikit-learn", "safetensors"},
    op_tags=CPU_TAGS,
    tags={"stage": "train"},
    code_version=code_version("learning"),
)
@tried_again
def classical(context: dg.AssetExecutionContext, config: FitConfig, store: StoreResource, unet: Path) -> Any:
    """Isolation Forest and One-Class SVM, fitted to real changes: how unlike a real one a candidate is."""
    from astrid_pipeline.learning.retrain import describe, train_classical

    with scratch_folder(store.open()) as folder:
        model = train_classical(unet, folder, seed=config.seed)
        yield dg.Output(folder, metadata={**describe(model), "features": len(model.features)})


@dg.asset(
    **COMMON,
    kinds={"safetensors"},
    op_tags=CPU_TAGS,
    tags={"stage": "train"},
    code_version=code_version("learning"),
)
@tried_again
def ensemble(
    context: dg.AssetExecutionContext,
    config: FitConfig,
    store: StoreResource,
    tracking: Tracking,
    detector: DetectorResource,
    unet: Path,
    real_bogus: Path,
    classical: Path,
) -> Any:
    """All models as one detector: weights and calibration learned on held-out images; registered as challenger."""
    from astrid_pipeline.learning.retrain import train_ensemble

    with scratch_folder(store.open()) as folder:
        model = train_ensemble(
            unet,
            real_bogus,
            classical,
            folder,
            name="astrid-unet",
            version=context.run_id[:8],
            champion=detector.champion(),
            seed=config.seed,
        )
        with tracking.attempt("ensemble", dagster_run_id=context.run_id) as attempt:
            registered = tracking.register(
                DETECTOR,
                folder,
                attempt.run_id,
                alias=CHALLENGER,
                tags={"model": f"{model.name} {model.version}"},
            )
        assert model.ensemble is not None
        weights = {
            name: number(value, 3)
            for name, value in zip(
                ("unet", "real_bogus", "isolation", "one_class"), model.ensemble.weights, strict=True
            )
        }
        yield dg.Output(
            folder,
            metadata={
                "threshold": number(model.threshold, 3),
                "profiles_left": ", ".join(model.facts.get("profiles_left", ())) or "none",
                **{f"weight_{name}": value for name, value in weights.items()},
                "registered": f"{registered.name} version {registered.version} ({CHALLENGER})",
            },
        )


@dg.asset(
    **COMMON,
    kinds={"torch"},
    pool=GPU_POOL,
    op_tags=GPU_TAGS,
    tags={"stage": "evaluate"},
    code_version=code_version("learning"),
)
@tried_again
def evaluation(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    products: ProductsResource,
    tracking: Tracking,
    detector: DetectorResource,
    ensemble: Path,
    training_dataset: pd.DataFrame,
) -> Any:
    """Challenger and champion on images that neither was trained on; the better one detects from now on.

    The challenger is promoted only where its average precision is better beyond the interval; else the reason
    stands here.
    """
    from astrid_pipeline.learning import load_model
    from astrid_pipeline.learning.retrain import compare
    from astrid_pipeline.report.evaluation import recall_png, write_evaluation

    test = _splits(training_dataset, products, ("test",))["test"]
    verdict = compare(
        load_model(ensemble / "detector.safetensors"), detector.champion(), test, device=detector.device
    )
    with (
        scratch_folder(store.open()) as folder,
        tracking.attempt(
            "evaluation",
            tags={"promoted": verdict.promoted, "reason": verdict.reason},
            dagster_run_id=context.run_id,
        ) as attempt,
    ):
        for name, result in (("challenger", verdict.challenger), ("champion", verdict.champion)):
            attempt.log_metrics({f"{name}.{key}": value for key, value in result.flat().items()})
        table = verdict.challenger.table()
        table.to_csv(folder / "challenger.csv", index=False)
        verdict.champion.table().to_csv(folder / "champion.csv", index=False)
        both = {"the challenger": verdict.challenger, "the champion": verdict.champion}
        attempt.log_file(write_evaluation(both, folder / "evaluation.html"))
        if verdict.promoted:
            version = tracking.find(DETECTOR, CHALLENGER)
            assert version is not None
            tracking.set_alias(DETECTOR, CHAMPION, version.version)
        best = verdict.challenger.best
        shown = [c for c in ("method", "ap", "precision", "recall", "false_per_mpix") if c in table]
        yield dg.Output(
            folder,
            metadata={
                "promoted": verdict.promoted,
                "reason": verdict.reason,
                **{
                    name: str(best[name])
                    for name in ("ap", "precision", "recall", "false_per_mpix")
                    if name in best
                },
                "champion_ap": str(verdict.champion.best["ap"]),
                "images": verdict.challenger.images,
                "megapixels": number(verdict.challenger.megapixels, 2),
                "truths": verdict.challenger.truths,
                "splits": ", ".join(SPLITS),
                "table": preview(table, shown),
                "report": f"evaluation.html, with this asset's files and in MLflow run {attempt.run_id}",
                "picture": picture(recall_png(both), "share found, by true S/N"),
            },
        )
