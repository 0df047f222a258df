"""Real or bogus of any survey's alert packets, from their cut-outs alone.

Boosted trees on what is measured of the cut-outs and on what the packaged network says of them. They learn from
simulated stamps, whose truth is known, so that no survey's alerts are in them: those of AstrID's own differences, and
those of differences as surveys make them (`survey_stamps`). `calibrated_on` fits their probabilities to a survey's own
alerts. Several forests, each grown on other stamps and some on other measurements (`alert_fitting`), say how far they
agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning import stamps, weights
from astrid_pipeline.learning.calibration import Calibrator, fit, logit
from astrid_pipeline.learning.detector import Detector, load_model
from astrid_pipeline.learning.network import pick_device, predict_batch
from astrid_pipeline.learning.peaks import combine
from astrid_pipeline.learning.real_bogus import RealBogus
from astrid_pipeline.learning.schema import CLASSES
from astrid_pipeline.learning.stamps import SIDE, Stamp

Floats = npt.NDArray[np.float64]

#: The model that comes with AstrID.
PACKAGED = Path(__file__).parent / "models" / "alerts-v1.safetensors"

#: The detector whose network looks at the cut-outs for it. It is its own, not that of the differences: a model for the
#: images that AstrID makes may change any day, and what reads other surveys' cut-outs should not change with it.
PACKAGED_NETWORK = Path(__file__).parent / "models" / "alerts-network-v1.safetensors"

#: Columns that the forests look at: what is measured, and the network's summed answer at the source.
FEATURES: tuple[str, ...] = (*stamps.FEATURES, "unet_any", "unet_mask")

#: Stamps that go through the network at once.
_BATCH = 64

#: Labelled alerts of each kind without which probabilities are not fitted to them.
LEAST = 10

#: Classes besides the network's: not real; and not to be told, where the forests disagree on which side of ½ it is.
BOGUS, UNSURE = "bogus", "unsure"


@dataclass(frozen=True)
class AlertModel:
    """Forests with a calibration; see the module.

    Attributes
    ----------
    members:
        One forest each, grown on other stamps; not all look at all `FEATURES`.
    calibrator:
        From the members' logits to probabilities.
    network_digest:
        Of the detector whose network made the features: another network's answers would be read wrongly.
    name, version, facts:
        What it calls itself, and how it was made.
    """

    members: tuple[RealBogus, ...]
    calibrator: Calibrator
    network_digest: str
    name: str
    version: str
    facts: Mapping[str, Any]

    def logits(self, features: pd.DataFrame) -> Floats:
        """Return (members, rows) logits, not calibrated yet."""
        return np.stack([member.logit(features) for member in self.members])

    def score(self, features: pd.DataFrame) -> pd.DataFrame:
        """Return real_probability, class and uncertainty of rows of `FEATURES` and the network's ``p_…``.

        The probability is the members' mean, the uncertainty their standard deviation; the class is the network's
        likeliest where the probability is over ½, `BOGUS` where it is under, and `UNSURE` where ½ lies within the
        uncertainty.
        """
        each = self.calibrator(self.logits(features))
        probability, spread = each.mean(axis=0), each.std(axis=0, ddof=1)
        heats = features[[f"p_{name}" for name in CLASSES]].to_numpy(float)
        names = np.array(CLASSES, object)[heats.argmax(axis=1)] if len(features) else np.zeros(0, object)
        names = np.where(probability < 0.5, BOGUS, names)
        names = np.where(np.abs(probability - 0.5) < spread, UNSURE, names)
        return pd.DataFrame(
            {"real_probability": probability, "class": names, "uncertainty": spread}, index=features.index
        )

    def save(self, path: Path) -> str:
        """Write it and return its digest."""
        tensors, parts = self.calibrator.tensors("calibrator."), []
        for n, member in enumerate(self.members):
            arrays, about = member.parts()
            tensors |= {f"{n}.{name}": array for name, array in arrays.items()}
            parts.append(about)
        facts = {
            "name": self.name,
            "version": self.version,
            "network_digest": self.network_digest,
            "about": dict(self.facts),
            "members": parts,
        }
        return weights.save(path, "alerts", tensors, facts)


def load_alert_model(path: Path | None = None) -> AlertModel:
    """Return the model in a file; without one, that which comes with AstrID. Loading runs no code.

    Raises
    ------
    ModelError
        If it is absent, damaged, or of another kind.
    """
    path = PACKAGED if path is None else path
    tensors, facts, _ = weights.load(path, "alerts")
    try:
        members = tuple(
            RealBogus.from_parts(
                {k.removeprefix(f"{n}."): v for k, v in tensors.items() if k.startswith(f"{n}.")}, about, path
            )
            for n, about in enumerate(facts["members"])
        )
        if len(members) < 2:
            raise ValueError("it has fewer than two forests")
        return AlertModel(
            members,
            Calibrator.from_tensors(tensors, "calibrator."),
            str(facts["network_digest"]),
            str(facts["name"]),
            str(facts["version"]),
            dict(facts["about"]),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(
            f"the alert model is damaged: {error}", where=path, remedy="train it again"
        ) from error


def load_alert_network(path: Path | None = None) -> Detector:
    """Return the detector in a file; without one, that which the packaged alert model was fitted to.

    Raises
    ------
    ModelError
        If it is absent or damaged.
    """
    return load_model(PACKAGED_NETWORK if path is None else path)


def stamp_features(
    each: Sequence[Stamp], detector: Detector, *, device: str | torch.device | None = None
) -> pd.DataFrame:
    """Return one row a stamp: `FEATURES`, and ``p_transient``, ``p_variable``, ``p_moving`` of the network."""
    table = stamps.measure(each)
    where = pick_device(device)
    middle = slice(SIDE // 2 - 2, SIDE // 2 + 3)
    heats, masks = [np.zeros((0, len(CLASSES)), np.float32)], [np.zeros(0, np.float32)]
    for start in range(0, len(each), _BATCH):
        crops = np.stack([stamps.planes(stamp) for stamp in each[start : start + _BATCH]])
        answer = predict_batch(detector.inference_network, crops, device=where)[..., middle, middle]
        heats.append(answer[:, :-1].max(axis=(2, 3)))
        masks.append(answer[:, -1].mean(axis=(1, 2)))
    heat = np.concatenate(heats)
    table["unet_any"] = logit(combine(heat.T[:, :, None])[:, 0])
    table["unet_mask"] = logit(np.concatenate(masks))
    for c, name in enumerate(CLASSES):
        table[f"p_{name}"] = heat[:, c]
    return table


def calibrated_on(model: AlertModel, features: pd.DataFrame, real: npt.ArrayLike, *, what: str) -> AlertModel:
    """Return the model with its probabilities fitted (Platt) to labelled alerts; the forests stay as they are.

    Raises
    ------
    ModelError
        If fewer than 10 alerts are real, or bogus.
    """
    y = np.asarray(real).astype(bool)
    if min(y.sum(), (~y).sum()) < LEAST:
        raise ModelError(
            f"{int(y.sum())} real and {int((~y).sum())} bogus alerts are too few to calibrate on",
            remedy="hand over more labelled alerts; at least 10 of each are needed",
        )
    calibrator = fit("platt", model.logits(features).mean(axis=0), y)
    facts = {
        **model.facts,
        "calibrated_on": what,
        "alerts_real": int(y.sum()),
        "alerts_bogus": int((~y).sum()),
    }
    return replace(model, calibrator=calibrator, facts=facts)
