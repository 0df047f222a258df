"""All models of a detection in one object and one file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import nn

from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning import weights
from astrid_pipeline.learning.calibration import Calibrator, logit
from astrid_pipeline.learning.change_class import ChangeClass
from astrid_pipeline.learning.classical import Classical
from astrid_pipeline.learning.correction import Correction
from astrid_pipeline.learning.ensemble import Ensemble
from astrid_pipeline.learning.epochs import FLOOR, OtherEpochs
from astrid_pipeline.learning.network import prepare_for_inference
from astrid_pipeline.learning.peaks import class_probabilities
from astrid_pipeline.learning.profile import SurveyProfile
from astrid_pipeline.learning.real_bogus import RealBogus

#: Least combined heat of a peak that the second stage looks at: three quarters of the peaks at this height are
#: noise, and below it hardly one in fifty is real.
PEAK_THRESHOLD = 0.05

#: What the score is made of.
_SCORING = frozenset({"network", "calibrator", "real_bogus", "classical", "ensemble", "correction"})


@dataclass(frozen=True)
class Detector:
    """A network with what turns its peaks into calibrated detections.

    Attributes
    ----------
    network:
        In eval mode, float32.
    name, version:
        Stand on every detection.
    calibrator:
        From the logit of a peak's combined heat to a probability.
    real_bogus, classical, ensemble:
        The second stage; without an ensemble the calibrated network alone makes the score.
    correction:
        What a survey's own labels have taught since; it has the last word on one pair of frames.
    classes:
        What says which class a change is; without it the heats' shares do.
    epochs:
        What the night's other exposures make of the score, where there are some (`night.epochs`); optional.
    profiles:
        By survey, what its own injections say of the scores there (`profile`); at most one is in use.
    profile:
        The one in use: it maps the score, and its threshold is `threshold`.
    peak_threshold:
        Least combined heat of a peak.
    threshold:
        Least score of a detection.
    facts:
        What it was trained on and what it reached.
    digest:
        Of the file it came from; empty if it was not loaded from one.
    """

    network: nn.Module
    name: str
    version: str
    calibrator: Calibrator
    threshold: float
    peak_threshold: float = PEAK_THRESHOLD
    real_bogus: RealBogus | None = None
    classical: Classical | None = None
    ensemble: Ensemble | None = None
    correction: Correction | None = None
    classes: ChangeClass | None = None
    epochs: OtherEpochs | None = None
    profiles: tuple[SurveyProfile, ...] = ()
    profile: SurveyProfile | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""

    @cached_property
    def inference_network(self) -> nn.Module:
        """The network made fast for answering; it cannot learn."""
        return prepare_for_inference(self.network)

    @property
    def floor(self) -> float:
        """Least score of a peak that can become a detection yet, when other epochs are looked at."""
        return self.threshold if self.epochs is None else min(FLOOR, self.threshold)

    def replace(self, **changes: Any) -> Detector:
        """Return a copy with some parts replaced; profiles that were fitted to what is replaced are gone with it."""
        if self.profiles and _SCORING & set(changes) and "profiles" not in changes:
            changes |= {"profiles": ()}
        return dataclasses.replace(self, **changes)

    def for_survey(self, meta: Mapping[str, Any]) -> Detector:
        """Return the detector as it judges a frame of this meta: with its survey's profile, if there is one.

        The survey's name then stands behind the version, and so on every detection.
        """
        return self if self.profile else next((self.using(p) for p in self.profiles if p.serves(meta)), self)

    def using(self, profile: SurveyProfile) -> Detector:
        """Return the detector with a profile in use."""
        if profile.name not in self._in_use:
            other = dataclasses.replace(
                self,
                profile=profile,
                threshold=profile.threshold,
                version=f"{self.version}+{profile.name}",
            )
            # One network, and what was compiled of it, serves all surveys.
            other.__dict__["inference_network"] = self.inference_network
            self._in_use[profile.name] = other
        return self._in_use[profile.name]

    @cached_property
    def _in_use(self) -> dict[str, Detector]:
        return {}

    def stage_inputs(self, table: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return (rows, `ensemble.INPUTS`) of peaks with features; NaN where a model is not there."""
        nothing = np.full(len(table), np.nan)
        return np.column_stack(
            [
                logit(table["unet_raw"]),
                nothing if self.real_bogus is None else self.real_bogus.logit(table),
                nothing if self.classical is None else self.classical.isolation(table),
                nothing if self.classical is None else self.classical.one_class(table),
            ]
        )

    def class_shares(self, table: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return (rows, classes): how probable each class is, if the change is real."""
        return class_probabilities(table) if self.classes is None else self.classes(table)

    def score(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return score, unet_score, real_bogus, isolation and one_class of peaks with features.

        `table` has the columns of `peaks.find_peaks` and `peaks.unet_features`, and the candidates' features.
        """
        inputs = self.stage_inputs(table)
        unet = self.calibrator(inputs[:, 0]) if len(table) else np.zeros(0)
        score = unet if self.ensemble is None else self.ensemble.probability(inputs)
        score = score if self.correction is None else self.correction(table, score)
        out = pd.DataFrame(
            {
                "score": score if self.profile is None else self.profile(score),
                "unet_score": unet,
                "real_bogus": 1 / (1 + np.exp(-np.clip(inputs[:, 1], -50, 50))),
                "isolation": inputs[:, 2],
                "one_class": inputs[:, 3],
            },
            index=table.index,
        )
        return out

    def save(self, path: Path) -> str:
        """Write all parts to one file, the network in float16, and return its digest.

        Raises
        ------
        ValueError
            If a profile is in use: what is written is the detector that has them all.
        """
        if self.profile is not None:
            raise ValueError(
                f"the detector is in use for {self.profile.name}; save the one that it came from"
            )
        tensors = weights.network_tensors(self.network, "network.", half=True)
        tensors |= self.calibrator.tensors("calibrator.")
        facts: dict[str, Any] = {
            **weights.network_facts(self.network),
            "name": self.name,
            "version": self.version,
            "threshold": self.threshold,
            "peak_threshold": self.peak_threshold,
            "about": dict(self.facts),
            "parts": {},
        }
        for part in ("real_bogus", "classical", "ensemble", "correction", "classes", "epochs"):
            model = getattr(self, part)
            if model is not None:
                more, about = model.parts()
                tensors |= more
                facts["parts"][part] = about
        for profile in self.profiles:
            more, about = profile.parts()
            tensors |= more
            facts.setdefault("profiles", {})[profile.name] = about
        return weights.save(path, "detector", tensors, facts)


def load_model(path: Path | str | None = None) -> Detector:
    """Return the detector in a file; without one, that which comes with AstrID.

    Loading runs no code from the file.

    Raises
    ------
    ModelError
        If the file is absent, damaged, or does not fit this version. There is no fallback.
    """
    path = weights.PACKAGED if path is None else Path(path)
    tensors, facts, digest = weights.load(path, "detector")
    network = weights.network_from(tensors, facts, path, "network.")
    try:
        parts = dict(facts["parts"])
        calibrator = Calibrator.from_tensors(tensors, "calibrator.")
        detector = Detector(
            network=network,
            name=str(facts["name"]),
            version=str(facts["version"]),
            calibrator=calibrator,
            threshold=float(facts["threshold"]),
            peak_threshold=float(facts["peak_threshold"]),
            facts=dict(facts["about"]),
            digest=digest,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(f"the model's header lacks {error}", where=path, remedy="train it again") from error
    kinds: dict[str, Any] = {
        "real_bogus": RealBogus,
        "classical": Classical,
        "ensemble": Ensemble,
        "correction": Correction,
        "classes": ChangeClass,
        "epochs": OtherEpochs,
    }
    for name, about in parts.items():
        if name not in kinds:
            raise ModelError(f"the model has an unknown part {name!r}", where=path, remedy="update AstrID")
        detector = detector.replace(**{name: kinds[name].from_parts(tensors, about, path)})
    profiles = dict(facts.get("profiles", {}))
    return detector.replace(
        profiles=tuple(
            SurveyProfile.from_parts(name, tensors, about, path) for name, about in profiles.items()
        )
    )
