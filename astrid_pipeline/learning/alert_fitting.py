"""Forests of the alert model: grown on several kinds of simulated stamps, each with several views of them.

Which differences another survey's alerts come from nobody knows beforehand. One forest on a mixture of all kinds learns
what tells the kinds apart as well; forests of one kind each, and of a part of the measurements each, err differently.
On ZTF's alerts their mean ranked better than any of them, on simulated stamps nearly as well as the best (see the
model card).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning import stamps
from astrid_pipeline.learning.alert_model import FEATURES, LEAST, AlertModel, stamp_features
from astrid_pipeline.learning.calibration import choose, fit
from astrid_pipeline.learning.channels import unsqueeze_image, unsqueeze_score
from astrid_pipeline.learning.detector import Detector
from astrid_pipeline.learning.matching import NEITHER, RIGHT, match
from astrid_pipeline.learning.real_bogus import fit_real_bogus
from astrid_pipeline.learning.shards import ShardSet
from astrid_pipeline.learning.stamps import Stamp
from astrid_pipeline.learning.survey_stamps import survey_stamps
from astrid_pipeline.learning.targets import UNUSABLE_BIT

Floats = npt.NDArray[np.float64]

#: What a forest looks at: all; not which share of its light changed, which says much of stars and little else; not what
#: the network says, which has been trained on differences of one kind.
VIEWS: Mapping[str, tuple[str, ...]] = {
    "all": FEATURES,
    "no share": tuple(name for name in FEATURES if name != "share"),
    "no network": tuple(name for name in FEATURES if not name.startswith("unet_")),
}

#: Truth from here on is a real example; fainter changes are neither (`second_stage`).
_REAL_SNR = 4.0

#: Share of the stamps that are learned from without their template.
_NO_TEMPLATE = 0.1


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


def joined(parts: Sequence[Material]) -> Material:
    """Return several as one."""
    return Material(
        pd.concat([part.features for part in parts], ignore_index=True),
        np.concatenate([part.real for part in parts]),
        np.concatenate([part.groups for part in parts]),
        np.concatenate([part.weight for part in parts]),
    )


def simulated_material(
    shards: ShardSet,
    detector: Detector,
    *,
    n_pairs: int = 0,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Material]:
    """Return what can be learned from, a part a kind of difference.

    The first is the candidates of labelled images that the detector's network was not trained on; with `n_pairs`, the
    second is those of as many pairs that are simulated and subtracted as surveys do it.
    """
    each, known = stamps_of(shards)
    rng = np.random.default_rng(seed)
    # Some surveys send no template: one stamp in ten is learned from as if it had none.
    each = [replace(s, template=None) if rng.random() < _NO_TEMPLATE else s for s in each]
    kinds = [(each, known)]
    if n_pairs:
        kinds.append(survey_stamps(n_pairs, seed, progress=progress))
    return [
        Material(
            stamp_features(these, detector, device=device),
            table["real"].to_numpy(bool),
            table["image_id"].to_numpy(object),
            np.ones(len(table)),
        )
        for these, table in kinds
    ]


def fit_alert_model(
    shards: ShardSet,
    detector: Detector,
    *,
    n_pairs: int = 0,
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
    material = simulated_material(shards, detector, n_pairs=n_pairs, seed=seed, device=device)
    model = fit_forests(material, detector, name=name, version=version, seed=seed)
    return replace(model, facts={**model.facts, "data": shards.hash})


def forests_of(kinds: int) -> int:
    """Return how many forests `fit_forests` grows on so many kinds of simulated stamps."""
    return len(VIEWS) * (kinds + 1 if kinds > 1 else 1)


def fit_forests(
    simulated: Sequence[Material],
    detector: Detector,
    curated: Material | None = None,
    *,
    share: float = 0.0,
    name: str = "astrid-alerts",
    version: str = "",
    seed: int = 0,
    grown: Callable[[], None] | None = None,
) -> AlertModel:
    """Return forests grown on simulated stamps and, with `share` of all weight, curated ones.

    There is one forest for each of `VIEWS` on each kind of simulated stamps, and on all together. Each is grown on
    a bootstrap of the images and objects (whole ones: stamps of one share its sky); the calibration is found on what a
    forest did not see: on the curated ones where there are `LEAST` of each kind, since real alerts are what it is for,
    else on the simulated. `grown` is called after each forest.

    Raises
    ------
    ModelError
        If there are too few examples, the share is not from 0 to 1, or the detector did not come from a file.
    """
    if not detector.digest:
        raise ModelError("the detector was not loaded from a file", remedy="save it, and load it again")
    if not 0 <= share < 1:
        raise ModelError(f"a share of {share} cannot be", where="curated examples", remedy="choose 0 to 0.9")
    every = joined(simulated)
    kinds = [*simulated, every] if len(simulated) > 1 else list(simulated)
    real = curated if curated is not None and share else None
    judge = real is not None and min(int(real.real.sum()), int((~real.real).sum())) >= LEAST
    rng = np.random.default_rng([seed, 1])
    members, outside_z, outside_y = [], [], []
    for n, (kind, view) in enumerate((kind, view) for kind in kinds for view in VIEWS.values()):
        parts = [kind] if real is None else [kind, real]
        # Σ weight of the curated over that of all is the share.
        scales = [1.0] + [share / (1 - share) * kind.weight.sum() / part.weight.sum() for part in parts[1:]]
        times = [part.drawn(rng) for part in parts]
        rows = [np.repeat(np.arange(len(part)), t) for part, t in zip(parts, times, strict=True)]
        drawn = [
            replace(part.take(r), weight=k * part.weight[r])
            for part, r, k in zip(parts, rows, scales, strict=True)
        ]
        all_drawn = joined(drawn)
        member = fit_real_bogus(
            all_drawn.features,
            all_drawn.real,
            view,
            groups=all_drawn.groups,
            weight=all_drawn.weight,
            seed=seed + n,
        )
        members.append(member)
        if grown is not None:
            grown()
        last = len(parts) - 1 if judge else 0
        unseen = parts[last].take(np.flatnonzero(times[last] == 0))
        outside_z.append(member.logit(unseen.features))
        outside_y.append(unseen.real)
    z, y = np.concatenate(outside_z), np.concatenate(outside_y)
    calibrator = fit("platt", z, y) if judge else choose(z, y, seed=seed)
    what = "curated examples" if judge else "simulated stamps"
    facts: dict[str, Any] = {
        "learned_from": "simulated stamps" + ("" if real is None else " and curated examples"),
        "stamps": len(every),
        "kinds": [len(kind) for kind in simulated],
        "real": int(every.real.sum()),
        "images": len(pd.unique(every.groups)),
        "calibrated_on": f"{what} that a forest did not see",
    }
    if real is not None:
        facts |= {"curated": len(real), "curated_real": int(real.real.sum()), "curated_share": share}
    return AlertModel(tuple(members), calibrator, detector.digest, name, version, facts)
