"""Real or bogus of any survey's alert packets, from their cut-outs alone.

Boosted trees on what is measured of the cut-outs and on what the packaged network says of them. They learn from
simulated stamps, whose truth is known, so that no survey's alerts are in them; `calibrated_on` fits their probabilities
to a survey's own alerts. Several forests, each grown on other skies, say how far they agree.
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
from astrid_pipeline.learning.calibration import Calibrator, choose, fit, logit
from astrid_pipeline.learning.channels import unsqueeze_image, unsqueeze_score
from astrid_pipeline.learning.detector import Detector, load_model
from astrid_pipeline.learning.matching import NEITHER, RIGHT, match
from astrid_pipeline.learning.network import pick_device, predict_batch
from astrid_pipeline.learning.peaks import combine
from astrid_pipeline.learning.real_bogus import RealBogus, fit_real_bogus
from astrid_pipeline.learning.schema import CLASSES
from astrid_pipeline.learning.shards import ShardSet
from astrid_pipeline.learning.stamps import SIDE, Stamp
from astrid_pipeline.learning.targets import UNUSABLE_BIT

Floats = npt.NDArray[np.float64]

#: The model that comes with AstrID.
PACKAGED = Path(__file__).parent / "models" / "alerts-v1.safetensors"

#: The detector whose network looks at the cut-outs for it. It is its own, not that of the differences: a model for the
#: images that AstrID makes may change any day, and what reads other surveys' cut-outs should not change with it.
PACKAGED_NETWORK = Path(__file__).parent / "models" / "alerts-network-v1.safetensors"

#: Columns that the forests look at: what is measured, and the network's summed answer at the source.
FEATURES: tuple[str, ...] = (*stamps.FEATURES, "unet_any", "unet_mask")

#: Forests of a model; the spread of 5 is known to a third of itself, which is enough to see where they disagree.
MEMBERS = 5

#: Truth from here on is a real example; fainter changes are neither (`second_stage`).
_REAL_SNR = 4.0

#: Share of the stamps that are learned from without their template.
_NO_TEMPLATE = 0.1

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
        One forest each, grown on other skies.
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


def stamps_of(shards: ShardSet) -> tuple[list[Stamp], pd.DataFrame]:
    """Return the stamps of all candidates of a set of labelled images that are clearly real or false.

    Returns
    -------
    stamps, table
        The table has image_id, real, label and kind of each.
    """
    out: list[Stamp] = []
    rows = []
    for index in range(len(shards)):
        planes, labels = np.asarray(shards.planes(index), np.float32), np.asarray(shards.labels(index))
        bad = (labels & UNUSABLE_BIT) != 0
        science, template = (unsqueeze_image(planes[i]).astype(np.float32) for i in (0, 1))
        difference = np.where(bad, np.nan, unsqueeze_score(planes[2])).astype(np.float32)
        found, truth = shards.candidates_of(index), shards.truth_of(index)
        place = found[["x", "y"]].astype(float).assign(score=found["peak_score"].abs().to_numpy(float))
        verdict, which = match(place, truth, min_snr=_REAL_SNR)
        for x, y, v, w in zip(place["x"], place["y"], verdict, which, strict=True):
            if v == NEITHER:
                continue
            cuts = [stamps.cut_out(image, x, y) for image in (difference, science, template)]
            try:
                out.append(stamps.make_stamp(*cuts))
            except ValueError:
                continue  # nearly all of it is masked: no survey sends such a stamp
            row = truth.iloc[w] if v == RIGHT else None
            label, kind = ("bogus", "") if row is None else (row["label"], row["kind"])
            rows.append((shards.image_id(index), v == RIGHT, label, kind))
    return out, pd.DataFrame(rows, columns=["image_id", "real", "label", "kind"])


@dataclass(frozen=True, eq=False)
class Material:
    """Stamps to learn from.

    Attributes
    ----------
    features:
        `stamp_features` of each.
    real:
        (rows,) bool.
    groups:
        (rows,) the image or object of each: what shares one is no independent witness.
    weight:
        (rows,) how much each counts.
    """

    features: pd.DataFrame
    real: npt.NDArray[np.bool_]
    groups: npt.NDArray[Any]
    weight: Floats

    def __len__(self) -> int:
        return len(self.real)

    def take(self, rows: npt.NDArray[Any]) -> Material:
        """Return some of its rows."""
        return Material(self.features.iloc[rows], self.real[rows], self.groups[rows], self.weight[rows])

    def drawn(self, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Return how often each row comes in a bootstrap of whole groups."""
        codes, names = pd.factorize(self.groups)
        return np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[codes]


def simulated_material(
    shards: ShardSet, detector: Detector, *, seed: int = 0, device: str | torch.device | None = None
) -> Material:
    """Return the candidates of labelled images that the detector's network was not trained on."""
    each, known = stamps_of(shards)
    rng = np.random.default_rng(seed)
    # Some surveys send no template: one stamp in ten is learned from as if it had none.
    each = [replace(s, template=None) if rng.random() < _NO_TEMPLATE else s for s in each]
    features = stamp_features(each, detector, device=device)
    groups = known["image_id"].to_numpy(object)
    return Material(features, known["real"].to_numpy(bool), groups, np.ones(len(known)))


def fit_alert_model(
    shards: ShardSet,
    detector: Detector,
    *,
    name: str = "astrid-alerts",
    version: str = "",
    seed: int = 0,
    device: str | torch.device | None = None,
) -> AlertModel:
    """Return a model fitted to the candidates of labelled images that the detector's network was not trained on.

    As `fit_forests`.

    Raises
    ------
    ModelError
        If there are too few examples, or the detector did not come from a file.
    """
    material = simulated_material(shards, detector, seed=seed, device=device)
    model = fit_forests(material, detector, name=name, version=version, seed=seed)
    return replace(model, facts={**model.facts, "data": shards.hash})


def fit_forests(
    simulated: Material,
    detector: Detector,
    curated: Material | None = None,
    *,
    share: float = 0.0,
    name: str = "astrid-alerts",
    version: str = "",
    seed: int = 0,
) -> AlertModel:
    """Return forests grown on simulated stamps and, with `share` of all weight, curated ones.

    Each forest is grown on a bootstrap of the images and objects (whole ones: stamps of one share its sky); the
    calibration is found on what a forest did not see: on the curated ones where there are `LEAST` of each kind, since
    real alerts are what it is for, else on the simulated.

    Raises
    ------
    ModelError
        If there are too few examples, the share is not from 0 to 1, or the detector did not come from a file.
    """
    if not detector.digest:
        raise ModelError("the detector was not loaded from a file", remedy="save it, and load it again")
    if not 0 <= share < 1:
        raise ModelError(f"a share of {share} cannot be", where="curated examples", remedy="choose 0 to 0.9")
    parts = [simulated] if curated is None or not share else [simulated, curated]
    # Σ weight of the curated over that of all is the share.
    scales = [1.0] + [share / (1 - share) * simulated.weight.sum() / part.weight.sum() for part in parts[1:]]
    last = parts[-1]
    enough = min(int(last.real.sum()), int((~last.real).sum())) >= LEAST
    judge = len(parts) - 1 if enough else 0
    rng = np.random.default_rng([seed, 1])
    members, outside_z, outside_y = [], [], []
    for n in range(MEMBERS):
        times = [part.drawn(rng) for part in parts]
        rows = [np.repeat(np.arange(len(part)), t) for part, t in zip(parts, times, strict=True)]
        drawn = [part.take(r) for part, r in zip(parts, rows, strict=True)]
        member = fit_real_bogus(
            pd.concat([d.features for d in drawn], ignore_index=True),
            np.concatenate([d.real for d in drawn]),
            FEATURES,
            groups=np.concatenate([d.groups for d in drawn]),
            weight=np.concatenate([k * d.weight for k, d in zip(scales, drawn, strict=True)]),
            seed=seed + n,
        )
        members.append(member)
        unseen = parts[judge].take(np.flatnonzero(times[judge] == 0))
        outside_z.append(member.logit(unseen.features))
        outside_y.append(unseen.real)
    z, y = np.concatenate(outside_z), np.concatenate(outside_y)
    calibrator = fit("platt", z, y) if judge else choose(z, y, seed=seed)
    what = "curated examples" if judge else "simulated stamps"
    facts: dict[str, Any] = {
        "learned_from": " and ".join(["simulated stamps", "curated examples"][: len(parts)]),
        "stamps": len(simulated),
        "real": int(simulated.real.sum()),
        "images": len(pd.unique(simulated.groups)),
        "calibrated_on": f"{what} that a forest did not see",
    }
    if len(parts) > 1:
        facts |= {"curated": len(last), "curated_real": int(last.real.sum()), "curated_share": share}
    return AlertModel(tuple(members), calibrator, detector.digest, name, version, facts)


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
