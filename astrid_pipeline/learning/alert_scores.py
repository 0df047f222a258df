"""Scoring alert packets: real or bogus, which class, how sure; and how far that agrees with the survey's score."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from astrid_pipeline.archives.alert_packets import AlertPacket, UnreadablePacket, read_alerts
from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning.alert_model import AlertModel, calibrated_on, stamp_features
from astrid_pipeline.learning.detector import Detector
from astrid_pipeline.learning.metrics import Value
from astrid_pipeline.learning.stamps import Stamp, filled, make_stamp

#: Packets whose cut-outs are held at once.
_BATCH = 512

#: The survey's score from which on it holds an alert for real, and under which for bogus; in between it does not know.
#: Deep models of the surveys are surer of what they say than the early forests.
REAL_DEEP, REAL_EARLY, BOGUS_BELOW = 0.9, 0.7, 0.3

#: A source within so many arcsec of a catalogued solar-system object is one, whatever a score says.
SOLAR_SYSTEM = 5.0

#: Parts that the alerts are cut into, by object, to calibrate each on the others.
_FOLDS = 10


@dataclass(frozen=True)
class AlertScores:
    """What came of some files of alerts.

    Attributes
    ----------
    table:
        file, record, id_name, source_id, object_id, real_probability, class, uncertainty, survey_score, and ``label``:
        1 where the survey (or a catalogue of known objects) holds it for real, 0 for bogus, NaN where it does not know.
    problems:
        Packets that could not be scored.
    """

    table: pd.DataFrame
    problems: list[UnreadablePacket]

    def written(self) -> pd.DataFrame:
        """Return the table as it is written: ids under the survey's own names, in one column each."""
        out = self.table[["file", "record"]].copy()
        names = sorted(set(self.table["id_name"])) or ["candid"]
        for name in names:
            out[name] = self.table["source_id"].where(self.table["id_name"] == name, "")
        out["objectId"] = self.table["object_id"]
        return out.join(self.table[["real_probability", "class", "uncertainty"]])


def survey_label(packet: AlertPacket) -> float:
    """Return 1 where the survey holds the alert for real, 0 for bogus, NaN where it does not know."""
    distance = packet.source.get("ssdistnr")
    if isinstance(distance, int | float) and 0 <= distance <= SOLAR_SYSTEM:
        return 1.0
    score = packet.survey_score
    deep = bool(packet.source.get("drbversion")) or "reliability" in packet.source
    if score > (REAL_DEEP if deep else REAL_EARLY):
        return 1.0
    return 0.0 if score < BOGUS_BELOW else float("nan")


def score_alerts(
    paths: Iterable[Path | str],
    model: AlertModel,
    detector: Detector,
    *,
    calibrate: bool = False,
    device: str | torch.device | None = None,
    progress: Callable[[int], None] | None = None,
) -> AlertScores:
    """Score every packet of some files and folders; those that cannot be scored are named in the result.

    Parameters
    ----------
    detector:
        The one whose network the model was fitted to.
    calibrate:
        Fit the probabilities to the survey's own verdicts in these packets; each alert's are fitted without any alert
        of the same object (or, without an object, without its file's record).
    progress:
        Called with the number of packets done.

    Raises
    ------
    ReadError
        If there is no file of alerts.
    ModelError
        If the model belongs to another network, or there are too few labelled alerts to calibrate on.
    """
    if detector.digest != model.network_digest:
        raise ModelError(
            f"the alert model {model.version} was fitted to another network than {detector.name} {detector.version}",
            where=model.name,
            remedy="use both from one training, or name neither",
        )
    rows: list[dict[str, object]] = []
    tables: list[pd.DataFrame] = []
    problems: list[UnreadablePacket] = []
    waiting: list[tuple[AlertPacket, Stamp]] = []

    def flush() -> None:
        if waiting:
            tables.append(stamp_features([stamp for _, stamp in waiting], detector, device=device))
            rows.extend(_facts(packet) for packet, _ in waiting)
            waiting.clear()
            if progress is not None:
                progress(len(rows) + len(problems))

    for packet in read_alerts(paths):
        if isinstance(packet, UnreadablePacket):
            problems.append(packet)
            continue
        try:
            waiting.append((packet, stamp_of(packet)))
        except ValueError as error:
            problems.append(UnreadablePacket(packet.file, packet.record, str(error)))
        if len(waiting) == _BATCH:
            flush()
    flush()
    known = pd.DataFrame(rows, columns=list(_COLUMNS))
    if not tables:
        return AlertScores(known.assign(real_probability=0.0, **{"class": ""}, uncertainty=0.0), problems)
    features = pd.concat(tables, ignore_index=True)
    scored = _calibrated(model, features, known) if calibrate else model.score(features)
    return AlertScores(known.join(scored), problems)


_COLUMNS = ("file", "record", "id_name", "source_id", "object_id", "survey", "survey_score", "label")


def _facts(packet: AlertPacket) -> dict[str, object]:
    facts = {name: getattr(packet, name) for name in _COLUMNS[:-1]}
    return {**facts, "label": survey_label(packet)}


def stamp_of(packet: AlertPacket) -> Stamp:
    """Return a packet's cut-outs as one stamp.

    Raises
    ------
    ValueError
        If there is no difference, or it cannot be measured.
    """
    if packet.difference is None:
        raise ValueError("the packet has no difference cut-out")
    sides = [max(c.shape) for c in (packet.difference, packet.science, packet.template) if c is not None]
    cuts = []
    for cut in (packet.difference, packet.science, packet.template):
        short = cut is not None and min(cut.shape) < max(sides)
        # Only a survey that says where the source is can say on which side pixels are missing.
        known = np.isfinite(packet.x) and np.isfinite(packet.y)
        cuts.append(
            filled(cut, max(sides), packet.x, packet.y) if cut is not None and short and known else cut
        )
    assert cuts[0] is not None
    return make_stamp(cuts[0], cuts[1], cuts[2])


def _calibrated(model: AlertModel, features: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    from sklearn.model_selection import GroupKFold

    alone = known["file"] + "#" + known["record"].astype(str)
    groups = known["object_id"].where(known["object_id"] != "", alone)
    label = known["label"].to_numpy(float)
    parts = []
    folds = GroupKFold(min(_FOLDS, groups.nunique()), shuffle=True, random_state=0)
    for train, test in folds.split(features, groups=groups):
        usable = train[np.isfinite(label[train])]
        what = "the survey's own verdicts, without the alert's object"
        fitted = calibrated_on(model, features.iloc[usable], label[usable] == 1, what=what)
        parts.append(fitted.score(features.iloc[test]))
    return pd.concat(parts).sort_index()


def agreement(table: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> tuple[Value, int, int]:
    """Return the ROC AUC of real_probability against the survey's verdicts, and how many are real and bogus.

    The 95 % interval is from drawing objects with replacement: alerts of one object are no independent witnesses.
    """
    clear = table[table["label"].notna()]
    label = clear["label"].to_numpy(float) == 1
    real, bogus = int(label.sum()), int((~label).sum())
    if not real or not bogus:
        return Value(float("nan")), real, bogus
    score = clear["real_probability"].to_numpy(float)
    objects = clear["object_id"].where(clear["object_id"] != "", clear.index.astype(str))
    codes, names = pd.factorize(objects)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[codes]
        values.append(auc(score, label, times))
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return Value(auc(score, label, np.ones(len(label), int)), float(low), float(high)), real, bogus


def auc(score: npt.NDArray[np.float64], real: npt.NDArray[np.bool_], times: npt.NDArray[np.int64]) -> float:
    """Return the area under the ROC curve where each row counts `times`: P(a real one scores higher), ties by half."""
    good, bad = score[real], score[~real]
    weight = times[real][:, None] * times[~real][None, :]
    if not weight.sum():
        return float("nan")
    wins = (good[:, None] > bad[None, :]) + 0.5 * (good[:, None] == bad[None, :])
    return float((wins * weight).sum() / weight.sum())
