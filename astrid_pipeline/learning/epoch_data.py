"""Labelled difference images of the same skies at several epochs: what `epochs` learns from and is judged on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from astrid_pipeline.errors import AstridError, MissingProductError, ModelError
from astrid_pipeline.learning.channels import unsqueeze_score
from astrid_pipeline.learning.data import SURVEY_CHANGES, Progress, image_seed
from astrid_pipeline.learning.detector import Detector
from astrid_pipeline.learning.epochs import COUNTS, When, epoch_features, significance_at
from astrid_pipeline.learning.evaluate import score_shards
from astrid_pipeline.learning.matching import NEITHER
from astrid_pipeline.learning.metrics import judge
from astrid_pipeline.learning.samples import labelled_truth, make_sample
from astrid_pipeline.learning.schema import CLASSES
from astrid_pipeline.learning.shards import Sample, ShardSet, is_whole, write_manifest, write_shard
from astrid_pipeline.learning.targets import UNUSABLE_BIT

#: When each image of a set was taken, beside its shards.
EXPOSURES = "exposures.parquet"

#: Least score of a peak that is learned from: a tenth of what is asked in use (`epochs.FLOOR`), so that the trees know
#: also what lies beyond.
_LOOKED = 0.02

#: Attempts at one sky before its error is raised: a few frames have too few stars for a PSF.
_ATTEMPTS = 4


def build_series(
    folder: Path,
    skies: int,
    seed: int = 0,
    shape: tuple[int, int] = (320, 320),
    progress: Progress | None = None,
    *,
    split: str = "train",
    changes: float = SURVEY_CHANGES,
    spoiled: bool = False,
) -> dict[str, Any]:
    """Simulate series of exposures (`simulation.series`) of `skies` pieces of sky and return the set's manifest.

    A shard holds one sky. Skies are drawn from (seed, split, number); those that are there already are kept, so that a
    killed build goes on.

    Parameters
    ----------
    changes:
        Changing objects a megapixel.
    spoiled:
        Full of artefacts that no mask covers.

    Raises
    ------
    AstridError
        What simulating or subtracting raised, four times for one sky.
    """
    if skies < 1:
        raise ModelError(
            f"a set of {skies} skies cannot be built", where=folder, remedy="ask for one or more"
        )
    folder.mkdir(parents=True, exist_ok=True)
    times = []
    for number in range(skies):
        table = folder / f"sky-{number:05d}.{EXPOSURES}"
        if not (is_whole(folder, number) and table.exists()):
            _build_sky(folder, number, image_seed(seed, split, number), shape, changes, spoiled, table)
        times.append(pd.read_parquet(table))
        if progress is not None:
            progress(number + 1, skies)
    pd.concat(times, ignore_index=True).to_parquet(folder / EXPOSURES, index=False)
    recipe: dict[str, Any] = {
        "seed": seed,
        "split": split,
        "shape": list(shape),
        "skies": skies,
        "changes": changes,
        "spoiled": spoiled,
    }
    return write_manifest(folder, range(skies), recipe)


def _build_sky(
    folder: Path, number: int, seed: int, shape: tuple[int, int], changes: float, spoiled: bool, table: Path
) -> None:
    from astrid_pipeline.imaging.candidates import find_candidates
    from astrid_pipeline.imaging.subtract import subtract
    from astrid_pipeline.simulation.series import simulate_series

    problem: AstridError | None = None
    for attempt in range(_ATTEMPTS):
        samples: list[Sample] = []
        times: list[tuple[str, str, str, float, str]] = []
        rng = np.random.default_rng([seed, attempt])
        try:
            for one in simulate_series(rng, shape, rate=changes, spoiled=spoiled):
                difference = subtract(one.pair.science, one.pair.reference)
                truth = labelled_truth(one.pair.truth, difference, "simulated")
                night = f"sky {number} night {one.night}"
                info = {
                    "sky": f"series-{seed}",
                    "night": night,
                    "case": one.filter,
                    "source": "simulated",
                    "seed": seed,
                }
                times.append(
                    (f"{number:05d}-{len(samples):03d}", f"series-{seed}", night, one.mjd, one.filter)
                )
                samples.append(make_sample(difference, truth, find_candidates(difference), info))
        except AstridError as error:
            problem = error
            continue
        write_shard(folder, number, samples)
        columns = ["image_id", "sky", "night", "mjd", "filter"]
        pd.DataFrame(times, columns=columns).to_parquet(table, index=False)
        return
    assert problem is not None
    raise problem


def exposures_of(folder: Path) -> pd.DataFrame:
    """Return image_id, sky, night, mjd, filter of the images of a set that `build_series` made.

    Raises
    ------
    MissingProductError
        If the folder holds no such set.
    """
    path = folder / EXPOSURES
    if not path.exists():
        raise MissingProductError(
            "there is no set of series of exposures",
            where=folder,
            remedy="make it with epoch_data.build_series",
        )
    return pd.read_parquet(path)


def load_series(folder: Path) -> tuple[ShardSet, pd.DataFrame]:
    """Return the images of a set and, in their order, when they were taken (`exposures_of`)."""
    shards = ShardSet(folder)
    table = exposures_of(folder).set_index("image_id").reindex(list(shards.images["image_id"]))
    return shards, table.reset_index()


#: Truth from here on is a real example, fainter is neither: as for the detector itself (`second_stage`).
_REAL_SNR = 4.0


def peaks_of_series(
    detector: Detector, shards: ShardSet, times: pd.DataFrame, *, curves: bool = False, floor: float = _LOOKED
) -> pd.DataFrame:
    """Return the detector's peaks in all images of a set, with what the other epochs of the same sky say of each.

    Parameters
    ----------
    times:
        Of `load_series`.
    curves, floor:
        Of `epoch_features`; the least score of a peak that is looked at.

    Returns
    -------
    DataFrame
        The columns of `evaluate.score_shards`, p_transient, p_variable, p_moving, ``sky``, ``verdict``
        (`matching`, of truth of S/N ≥ 4), and those of `epoch_features`, NaN and 0 below the floor.
    """
    peaks, _ = score_shards(detector, shards)
    for name, share in zip(CLASSES, detector.class_shares(peaks).T, strict=True):
        peaks[f"p_{name}"] = share
    area = pd.Series(1.0, index=shards.images["image_id"].astype(str))
    peaks["verdict"] = judge(peaks, shards.truth, area, min_snr=_REAL_SNR).table["verdict"].to_numpy()
    planes = {}
    for index in range(len(shards)):
        bad = (np.asarray(shards.labels(index)) & UNUSABLE_BIT) != 0
        planes[shards.image_id(index)] = (shards.planes(index), bad)
    whens = {
        str(row["image_id"]): When(
            str(row["image_id"]), str(row["night"]), float(row["mjd"]), str(row["filter"])
        )
        for row in times.to_dict("records")
    }
    parts = []
    of_sky = times.groupby("sky")["image_id"].apply(lambda s: [str(v) for v in s]).to_dict()
    sky_of = dict(zip(times["image_id"].astype(str), times["sky"].astype(str), strict=True))
    peaks["sky"] = peaks["image_id"].map(sky_of)
    for sky, rows in peaks[peaks["score"] >= floor].groupby("sky"):
        looks = {
            name: significance_at(unsqueeze_score(planes[name][0][3]), planes[name][1], rows["x"], rows["y"])
            for name in of_sky[sky]
        }
        for image, mine in rows.groupby("image_id"):
            here = rows.index.isin(mine.index)
            own, others = (
                whens[str(image)],
                [(whens[n], v[here]) for n, v in looks.items() if n != str(image)],
            )
            # On the edge of an unusable pixel the place between pixels is NaN, though the peak itself is none.
            made = epoch_features(own, np.nan_to_num(looks[str(image)][here]), others, curves=curves)
            parts.append(made.set_index(mine.index))
    features = pd.concat(parts).reindex(peaks.index)
    counts = [name for name in COUNTS.values() if name in features]
    features[counts] = features[counts].fillna(0.0)
    return pd.concat([peaks, features], axis=1)


def judged_peaks(peaks: pd.DataFrame) -> pd.DataFrame:
    """Return the peaks that are looked at anew and are clearly right or wrong."""
    return peaks[(peaks["verdict"] != NEITHER) & peaks["own_snr"].notna()].reset_index(drop=True)
