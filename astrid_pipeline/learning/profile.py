"""What a survey's own injections say of a detector's scores there: probabilities and a threshold fitted to that survey.

A detector that ranks a survey's finds as well as simulated ones may still be too sure, or not sure enough, of them:
noise that neighbouring pixels share, and artefacts that no simulation knows, move its scores as a whole. Each night's
injections tell by how much. A rising map is fitted to them, of the kind that cross-validation over pieces of sky finds
best (none is among them), and the threshold at which the wanted share of detections is real. The ranking stays.

What is found in the frames besides the injections, and was not found before them, is held for false. Changes that the
sky has made itself are few beside 90 injections a megapixel, and make a profile cautious rather than careless.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.errors import ConfigError, ModelError
from astrid_pipeline.learning.calibration import (
    RISING,
    Calibrator,
    choose,
    expected_calibration_error,
    fit,
    log_loss,
    logit,
)
from astrid_pipeline.learning.correction import sky_folds
from astrid_pipeline.learning.matching import NEITHER, RIGHT
from astrid_pipeline.learning.metrics import ECE_FLOOR, RESAMPLES, Value
from astrid_pipeline.learning.schema import CLASSES
from astrid_pipeline.learning.weights import Tensors

if TYPE_CHECKING:
    from astrid_pipeline.learning.detector import Detector
    from astrid_pipeline.learning.shards import ShardSet

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

#: Of the detections at a profile's threshold; that of the detector's own (`second_stage.TARGET_PRECISION`).
TARGET_PRECISION = 0.985
#: With fewer false peaks above a threshold, their share there is luck; what the map expects is less so.
FEW = 5
#: Fewer peaks of one kind leave Platt's two parameters to chance.
LEAST_OF_A_KIND = 15


@dataclass(frozen=True)
class SurveyProfile:
    """A detector's scores as one survey's injections have them.

    Attributes
    ----------
    name:
        The survey's; it stands behind the model's version on each detection.
    instruments:
        Whose frames it serves: names as `Frame.meta` has them, upper and lower case alike, with ``*`` and ``?``.
    calibrator:
        From the logit of the detector's score to the survey's probability.
    threshold:
        Least probability of a detection there.
    facts:
        What it was fitted to, and what it changed.
    """

    name: str
    instruments: tuple[str, ...]
    calibrator: Calibrator
    threshold: float
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in "-_" for c in self.name):
            raise ConfigError(
                f"a profile cannot be called {self.name!r}", remedy="use letters, digits, - and _"
            )
        if not self.instruments:
            raise ConfigError("the profile serves no instrument", where=self.name, remedy="name one or more")

    def serves(self, meta: Mapping[str, Any]) -> bool:
        """Tell whether frames of this meta are the survey's."""
        instrument = str(meta.get("instrument") or "").lower()
        return bool(instrument) and any(fnmatch(instrument, name.lower()) for name in self.instruments)

    def __call__(self, score: npt.ArrayLike) -> Floats:
        """Return the survey's probabilities of a detector's scores."""
        return self.calibrator(logit(score))

    def parts(self) -> tuple[Tensors, dict[str, Any]]:
        """Return what is written of it."""
        about = {
            "instruments": list(self.instruments),
            "threshold": self.threshold,
            "about": dict(self.facts),
        }
        return self.calibrator.tensors(f"profile.{self.name}."), about

    @classmethod
    def from_parts(cls, name: str, tensors: Tensors, facts: Mapping[str, Any], path: Path) -> SurveyProfile:
        """Return what `parts` wrote; `ModelError` if something is missing or does not fit."""
        try:
            return cls(
                name,
                tuple(facts["instruments"]),
                Calibrator.from_tensors(tensors, f"profile.{name}."),
                float(facts["threshold"]),
                dict(facts["about"]),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise ModelError(
                f"the profile {name} is damaged: {error}", where=path, remedy="fit it again"
            ) from error


def fit_profile(
    detector: Detector,
    peaks: pd.DataFrame,
    *,
    name: str,
    instruments: Sequence[str],
    real_weight: float = 1.0,
    seed: int = 0,
) -> SurveyProfile:
    """Return a survey's profile of a detector.

    Parameters
    ----------
    detector:
        Without a profile in use.
    peaks:
        `second_stage.label_peaks` of the survey's own differences with injections, with ``piece``: the piece of sky of
        each. What is tried on one was not fitted to it, whatever the night.
    real_weight:
        `second_stage.real_weight` of the images: probabilities hold at `data.SURVEY_CHANGES` changes a megapixel.

    Raises
    ------
    ModelError
        If there are fewer than `LEAST_OF_A_KIND` real or false peaks.
    """
    from astrid_pipeline.learning.second_stage import threshold_for

    clear = peaks[peaks["verdict"] != NEITHER]
    real = (clear["verdict"] == RIGHT).to_numpy()
    if min(real.sum(), (~real).sum()) < LEAST_OF_A_KIND:
        raise ModelError(
            f"{int(real.sum())} real and {int((~real).sum())} false peaks are too few to fit a profile to; "
            f"{LEAST_OF_A_KIND} of each are needed",
            where=name,
            remedy="inject into more nights",
        )
    score = detector.score(clear)["score"].to_numpy(float)
    pieces = pd.factorize(clear["piece"])[0]
    calibrator = fit_map(logit(score), real, pieces, real_weight=real_weight, seed=seed)
    mapped = calibrator(logit(score))
    facts = {
        "model": f"{detector.name} {detector.version}",
        "real": int(real.sum()),
        "false": int((~real).sum()),
        "pieces": int(pieces.max()) + 1,
        "kind": "none" if calibrator is IDENTITY else calibrator.kind,
    }
    threshold = threshold_for(mapped, clear["verdict"].to_numpy(), real_weight=real_weight)
    if ((mapped >= threshold) & ~real).sum() < FEW:
        threshold = max(threshold, expected_threshold(mapped, np.where(real, real_weight, 1.0)))
    return SurveyProfile(name, tuple(instruments), calibrator, threshold, facts)


def expected_threshold(
    probability: Floats, weight: Floats | None = None, precision: float = TARGET_PRECISION
) -> float:
    """Return the least probability above which, by the probabilities themselves, so large a share is real.

    That is where their mean over all above it falls to `precision`; `precision` itself if it is never reached.
    """
    order = np.argsort(-probability, kind="stable")
    w = np.ones(len(order)) if weight is None else weight[order]
    mean = np.cumsum(w * probability[order]) / np.cumsum(w)
    reached = np.flatnonzero(mean >= precision)
    return float(probability[order][reached[-1]]) if len(reached) else precision


#: What leaves probabilities as they are.
IDENTITY = Calibrator("temperature", np.array([1.0, 0.0]))


def fit_map(
    logits: Floats, real: Bools, pieces: npt.NDArray[np.int64], *, real_weight: float = 1.0, seed: int = 0
) -> Calibrator:
    """Return the map from logits to probabilities that is best on pieces of sky it was not fitted to, or none at all.

    Of the strictly rising kinds (`calibration.RISING`), so that what ranked above another still does. Where the scores
    as they are have less log loss on other pieces of sky, it is `IDENTITY`.
    """
    splits = sky_folds(pieces, real, seed)
    if not splits:
        return IDENTITY  # one piece of sky: nothing to try it on
    best = choose(logits, real, real_weight=real_weight, kinds=RISING, splits=splits)
    tried = np.concatenate([test for _, test in splits])
    guess = np.empty(len(real))
    for train, test in splits:
        guess[test] = fit(best.kind, logits[train], real[train], real_weight=real_weight)(logits[test])
    before, after = (
        log_loss(p[tried], real[tried], real_weight=real_weight) for p in (IDENTITY(logits), guess)
    )
    return best if after < before else IDENTITY


@dataclass(frozen=True)
class ProfileVerdict:
    """Figures on pieces of sky that each map and threshold were fitted without, before and after, 95 % intervals.

    Attributes
    ----------
    before, after, gain:
        By name: ``ece`` (of scores over `metrics.ECE_FLOOR`), ``log_loss``, and at the threshold ``precision``,
        ``recall`` and ``false_per_mpix``; truth of S/N ≥ `second_stage.REAL_SNR` is asked for. `gain` is after less
        before.
    injections, pieces:
        How many it rests on.
    better, reason:
        Whether the log loss fell beyond its interval, in words.
    """

    before: Mapping[str, Value]
    after: Mapping[str, Value]
    gain: Mapping[str, Value]
    injections: int
    pieces: int
    better: bool
    reason: str


def judge_profile(
    detector: Detector,
    peaks: pd.DataFrame,
    wanted: pd.Series,
    megapixels: pd.Series,
    *,
    real_weight: float = 1.0,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> ProfileVerdict:
    """Return what a profile changes, by cross-validation over pieces of sky.

    Parameters
    ----------
    peaks, real_weight:
        As in `fit_profile`.
    wanted, megapixels:
        By piece: true changes that could be found, and usable area (`sky_of`).

    Raises
    ------
    ModelError
        As `fit_profile`, and if all are of one piece of sky.
    """
    clear = peaks[peaks["verdict"] != NEITHER].reset_index(drop=True)
    real = (clear["verdict"] == RIGHT).to_numpy()
    pieces, names = pd.factorize(clear["piece"])
    base = detector.score(clear)["score"].to_numpy(float)
    mapped, least = base.copy(), np.full(len(base), detector.threshold)
    splits = sky_folds(pieces, real, seed)
    if not splits:
        raise ModelError(
            "all injections are of one piece of sky: nothing can be tried on another",
            where="profile",
            remedy="inject into more fields, or larger ones",
        )
    for train, test in splits:
        made = fit_profile(
            detector,
            clear.iloc[train],
            name="tried",
            instruments=("*",),
            real_weight=real_weight,
            seed=seed,
        )
        mapped[test], least[test] = made(base[test]), made.threshold
    # Of pieces without a single peak, what was missed and the area count as well.
    every = pd.Index(names).union(wanted.index)
    pieces = every.get_indexer(clear["piece"])
    asked = wanted.reindex(every).fillna(0).to_numpy(float)
    area = megapixels.reindex(every).fillna(0.0).to_numpy(float)
    weight = np.where(real, real_weight, 1.0)
    rows_of = [np.flatnonzero(pieces == k) for k in range(len(every))]
    answers = {"before": (base, np.full(len(base), detector.threshold)), "after": (mapped, least)}

    def figures(drawn: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        rows = np.concatenate([rows_of[k] for k in drawn])
        out = []
        for score, limit in answers.values():
            p, y, w, kept = score[rows], real[rows], weight[rows], score[rows] >= limit[rows]
            shown = p > ECE_FLOOR
            good, bad = float((w * (kept & y)).sum()), float((kept & ~y).sum())
            out.append(
                [
                    expected_calibration_error(p[shown], y[shown], weights=w[shown]),
                    log_loss(p, y, real_weight=real_weight),
                    good / max(good + bad, 1e-9),
                    float((kept & y).sum()) / max(asked[drawn].sum(), 1.0),
                    bad / max(area[drawn].sum(), 1e-9),
                ]
            )
        return np.array([*out, np.subtract(out[1], out[0])])

    values = figures(np.arange(len(every)))
    rng = np.random.default_rng(seed)
    draws = np.array([figures(rng.integers(len(every), size=len(every))) for _ in range(resamples)])
    low, high = np.nanpercentile(draws, [2.5, 97.5], axis=0)
    before, after, gain = (
        {name: Value(*(float(t[row, k]) for t in (values, low, high))) for k, name in enumerate(_FIGURES)}
        for row in range(3)
    )
    better = gain["log_loss"].high < 0
    text = (
        f"calibration error {after['ece']} against {before['ece']}, log loss {gain['log_loss'].value:+.4f} "
        f"({gain['log_loss'].low:+.4f} to {gain['log_loss'].high:+.4f}) on {int(asked.sum())} injections of "
        f"{len(every)} pieces of sky"
    )
    reason = f"{text}: better beyond the interval" if better else f"{text}: not better beyond the interval"
    return ProfileVerdict(before, after, gain, int(asked.sum()), len(every), better, reason)


_FIGURES = ("ece", "log_loss", "precision", "recall", "false_per_mpix")


def sky_of(shards: ShardSet) -> pd.Series:
    """Return the piece of sky of each image, by image_id: its field, and the tile's place in it.

    Tiles at the far edges are moved inwards (`samples.tiles`) and lie half on their neighbours: they are of the same
    piece.
    """

    def piece(sky: str) -> str:
        field_name, _, place = sky.rpartition("/")
        parts = place.split("-")
        if not field_name or len(parts) != 2 or not all(part.isdigit() for part in parts):
            return sky
        return f"{field_name}/{int(parts[0]) // shards.shape[0]}-{int(parts[1]) // shards.shape[1]}"

    names = shards.images["image_id"].astype(str)
    return pd.Series([piece(str(sky)) for sky in shards.images["sky"]], index=names)


def survey_peaks(
    detector: Detector,
    shards: ShardSet,
    *,
    device: str | None = None,
    pieces: pd.Series | None = None,
) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    """Return a survey's labelled peaks with their ``piece``; by piece what could be found, and usable megapixels.

    Parameters
    ----------
    shards:
        Differences of the survey's nights with injections (`night.samples`, `data.shards_from_differences`).
    pieces:
        The piece of sky of each image, by image_id; `sky_of` by default.
    """
    from astrid_pipeline.learning.second_stage import REAL_SNR, label_peaks

    where = sky_of(shards) if pieces is None else pieces
    peaks = label_peaks(detector.inference_network, shards, device=device)
    peaks["piece"] = where.reindex(peaks["image_id"].astype(str)).to_numpy(object)
    truth = shards.truth
    asked = truth[truth["label"].isin(CLASSES) & truth["usable"] & (truth["snr"] >= REAL_SNR)]
    wanted = asked["image_id"].astype(str).map(where).value_counts()
    size = shards.shape[0] * shards.shape[1] * 1e-6
    area = pd.Series(
        shards.images["usable_fraction"].to_numpy(float) * size, index=shards.images["image_id"].astype(str)
    )
    return peaks, wanted, area.groupby(where).sum()
