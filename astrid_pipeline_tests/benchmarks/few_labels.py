"""Is learning without labels worth anything with few of them? ``python -m astrid_pipeline_tests.benchmarks.few_labels``

A small network is taught real or bogus by 10 to 300 labelled stamps: once from nothing, once after it has learned to
fill in the covered parts of stamps whose labels it never saw (masked autoencoding, He et al. 2022, CVPR). Beside them
stands a logistic regression on what `learning.stamps` measures. All three get the same labels and are judged on the
same other stamps: simulated ones of other skies and, with `--alerts`, real ones of objects that taught none. Half an
hour on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from astrid_pipeline.archives.alert_packets import UnreadablePacket, read_alerts
from astrid_pipeline.learning import stamps as cut_outs
from astrid_pipeline.learning.alert_scores import auc, stamp_of, survey_label
from astrid_pipeline.learning.stamps import SIDE, Stamp
from astrid_pipeline.learning.survey_stamps import survey_stamps

#: Pixels around the source that the network sees; the side of the squares that are covered, and their share.
VIEW, PATCH, COVERED = 32, 4, 0.5

METHODS = ("measurements", "from nothing", "pretrained")

Planes = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Pool:
    """Stamps to draw labels from: (n, 4, VIEW, VIEW) planes, (n, features), (n,) real, and (n,) sky or object."""

    planes: Planes
    measured: npt.NDArray[np.float64]
    real: npt.NDArray[np.bool_]
    groups: npt.NDArray[Any]

    @classmethod
    def of(cls, each: Sequence[Stamp], real: npt.ArrayLike, groups: npt.ArrayLike) -> Pool:
        """Return a pool of stamps."""
        first = (SIDE - VIEW) // 2
        inner = slice(first, first + VIEW)
        planes = np.stack([cut_outs.planes(stamp)[:, inner, inner] for stamp in each])
        measured = cut_outs.measure(each).to_numpy(float)
        return cls(planes, measured, np.asarray(real, bool), np.asarray(groups, object))


def _layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.ReLU())


class Encoder(nn.Module):
    """(B, 4, 32, 32) planes to (B, 64, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _layer(4, 16), nn.MaxPool2d(2), _layer(16, 32), nn.MaxPool2d(2), _layer(32, 64), nn.MaxPool2d(2),
            _layer(64, 64),
        )  # fmt: skip

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.layers(planes)
        return answer


class Judge(nn.Module):
    """An encoder and one linear layer on mean, greatest and middle of what it says: (B,) logits."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.last = encoder, nn.Linear(3 * 64, 1)

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        seen = self.encoder(planes)
        parts = [seen.mean((2, 3)), seen.amax((2, 3)), seen[:, :, 1:3, 1:3].mean((2, 3))]
        answer: torch.Tensor = self.last(torch.cat(parts, 1))[:, 0]
        return answer


def turned(planes: torch.Tensor, orientation: int) -> torch.Tensor:
    """Return the planes in one of the eight orientations of a square."""
    return torch.rot90(planes.flip(-1) if orientation >= 4 else planes, orientation % 4, (-2, -1))


def covers(count: int, generator: torch.Generator) -> torch.Tensor:
    """Return (count, 1, VIEW, VIEW) bool: squares of `PATCH` px, `COVERED` of them covered."""
    side = VIEW // PATCH
    order = torch.rand(count, side * side, generator=generator).argsort(1)
    squares = (order < round(COVERED * side * side)).view(count, 1, side, side)
    return squares.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)


def pretrain(planes: Planes, *, steps: int, seed: int = 0) -> tuple[Encoder, list[float]]:
    """Return an encoder that learned to fill in covered squares of unlabelled stamps, and its loss by step."""
    torch.manual_seed(seed)
    encoder, rng, generator = Encoder(), np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    decoder = nn.Sequential(_layer(64, 64), nn.Conv2d(64, 4 * 64, 1), nn.PixelShuffle(8))
    both = [*encoder.parameters(), *decoder.parameters()]
    optimiser = torch.optim.AdamW(both, 2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    losses = []
    for _ in range(steps):
        x = turned(torch.from_numpy(planes[rng.integers(len(planes), size=64)]), int(rng.integers(8)))
        hidden = covers(len(x), generator)
        filled = decoder(encoder(x.masked_fill(hidden, 0.0)))
        loss = (functional.smooth_l1_loss(filled, x, reduction="none") * hidden).sum() / (4 * hidden.sum())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return encoder, losses


def taught(
    encoder: Encoder | None, pool: Pool, rows: npt.NDArray[np.int64], *, steps: int, seed: int
) -> Judge:
    """Return a judge taught by some rows of a pool; with an encoder that starts from it, on a copy."""
    torch.manual_seed(seed)
    start = Encoder()
    if encoder is not None:
        start.load_state_dict(encoder.state_dict())
    judge, rng = Judge(start), np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(judge.parameters(), 1e-3, weight_decay=1e-2)
    good, bad = rows[pool.real[rows]], rows[~pool.real[rows]]
    for _ in range(steps):
        drawn = np.concatenate([rng.choice(good, 16), rng.choice(bad, 16)])
        x = turned(torch.from_numpy(pool.planes[drawn]), int(rng.integers(8)))
        y = torch.from_numpy(pool.real[drawn].astype(np.float32))
        loss = functional.binary_cross_entropy_with_logits(judge(x), 0.9 * y + 0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return judge.eval()


def scores(judge: Judge, planes: Planes) -> npt.NDArray[np.float64]:
    """Return (n,) mean logits over the eight orientations."""
    out = []
    with torch.no_grad():
        for start in range(0, len(planes), 256):
            x = torch.from_numpy(planes[start : start + 256])
            out.append(torch.stack([judge(turned(x, k)) for k in range(8)]).mean(0).numpy())
    return np.concatenate(out).astype(float)


def by_measurements(pool: Pool, rows: npt.NDArray[np.int64], judged: Pool) -> npt.NDArray[np.float64]:
    """Return logits of `judged` by a logistic regression on what is measured of the stamps."""
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import RobustScaler

    model = make_pipeline(
        SimpleImputer(keep_empty_features=True),
        RobustScaler(),
        LogisticRegression(C=0.3, class_weight="balanced", max_iter=2000),
    )
    model.fit(np.clip(pool.measured[rows], -1e4, 1e4), pool.real[rows])
    return np.asarray(model.decision_function(np.clip(judged.measured, -1e4, 1e4)), float)


def drawn_labels(pool: Pool, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64] | None:
    """Return `count` rows, half of each kind as far as they reach; None where there are not so many.

    Of either kind no more than half is drawn, so that as many are left to judge.
    """
    good, bad = (rng.permutation(np.flatnonzero(pool.real == kind)) for kind in (True, False))
    few = min(count // 2, len(good) // 2, len(bad) // 2)
    n_good, n_bad = (count - few, few) if len(good) > len(bad) else (few, count - few)
    if few < 1 or n_good > len(good) // 2 or n_bad > len(bad) // 2:
        return None
    return np.concatenate([good[:n_good], bad[:n_bad]])


def compare(
    name: str,
    pool: Pool,
    judged: Pool | None,
    encoder: Encoder,
    labels: Sequence[int],
    seeds: int,
    steps: int,
) -> list[dict[str, Any]]:
    """Return a row a number of labels, draw and method; without `judged`, the pool's other objects are judged."""
    out: list[dict[str, Any]] = []
    for count in labels:
        for seed in range(seeds):
            rows = drawn_labels(pool, count, np.random.default_rng([seed, count]))
            if rows is None:
                continue
            others = np.flatnonzero(~np.isin(pool.groups, pool.groups[rows]))
            test = judged or Pool(
                pool.planes[others], pool.measured[others], pool.real[others], pool.groups[others]
            )
            answers = {
                METHODS[0]: by_measurements(pool, rows, test),
                METHODS[1]: scores(taught(None, pool, rows, steps=steps, seed=seed), test.planes),
                METHODS[2]: scores(taught(encoder, pool, rows, steps=steps, seed=seed), test.planes),
            }
            once = np.ones(len(test.real), np.int64)
            for method, answer in answers.items():
                value = auc(answer, test.real, once)
                out.append({"stamps": name, "labels": count, "seed": seed, "method": method, "auc": value})
    return out


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return, by stamps and labels, the mean AUC of each method and the gain by pretraining with its 95 % interval.

    The interval is Student's over the draws of labels, paired.
    """
    from scipy.stats import t

    rows = []
    for (name, count), mine in table.groupby(["stamps", "labels"], sort=False):
        wide = mine.pivot(index="seed", columns="method", values="auc")
        gain = (wide["pretrained"] - wide["from nothing"]).to_numpy(float)
        draws = len(gain)
        half = float(t.ppf(0.975, draws - 1) * gain.std(ddof=1) / np.sqrt(draws)) if draws > 1 else np.nan
        row = {"stamps": name, "labels": count, "draws": draws} | {m: wide[m].mean() for m in METHODS}
        rows.append(row | {"gain": gain.mean(), "low": gain.mean() - half, "high": gain.mean() + half})
    return pd.DataFrame(rows)


def alert_pool(folder: Path) -> tuple[Pool, Planes]:
    """Return a ZTF pool of the labelled alerts of a folder, and the planes of all alerts there."""
    each, labels, objects = [], [], []
    for packet in read_alerts([folder]):
        if isinstance(packet, UnreadablePacket):
            continue
        try:
            each.append(stamp_of(packet))
        except ValueError:
            continue  # `astrid score` names such packets; nothing can be learned from them
        labels.append(survey_label(packet) if packet.survey == "ztf" else np.nan)
        objects.append(packet.object_id or f"{packet.file}#{packet.record}")
    label = np.array(labels)
    everything = Pool.of(each, label == 1, objects)
    known = np.flatnonzero(np.isfinite(label))
    parts = (everything.planes, everything.measured, everything.real, everything.groups)
    return Pool(*(part[known] for part in parts)), everything.planes


def main(arguments: list[str] | None = None) -> int:
    """Run it, print the table, and return 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--pairs", type=int, default=120, help="simulated pairs: half unlabelled, a quarter to judge"
    )
    parser.add_argument("--labels", default="10,30,100,300", help="comma-separated")
    parser.add_argument("--seeds", type=int, default=5, help="draws of labels")
    parser.add_argument("--pretraining", type=int, default=800, help="steps without labels")
    parser.add_argument("--steps", type=int, default=150, help="steps with labels")
    parser.add_argument("--alerts", type=Path, help="folder of real ZTF alerts")
    parser.add_argument("--output", type=Path, default=Path("few_labels.json"))
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    counts = [int(text) for text in chosen.labels.split(",")]
    pools = []
    for split, share in (("unlabelled", 2), ("labels", 4), ("judged", 4)):
        each, known = survey_stamps(max(chosen.pairs // share, 1), 1, split=f"few-{split}")
        pools.append(Pool.of(each, known["real"], known["image_id"]))
    unlabelled = [pools[0].planes]
    alerts = None
    if chosen.alerts is not None:
        alerts, planes = alert_pool(chosen.alerts)
        # Some hundred alerts are to be seen among thousands of simulated stamps: each counts eight times.
        unlabelled += [planes] * 8
    encoder, losses = pretrain(np.concatenate(unlabelled), steps=chosen.pretraining)
    tenth = max(len(losses) // 10, 1)
    print(
        f"filling in: loss {np.mean(losses[:tenth]):.3f} at first, {np.mean(losses[-tenth:]):.3f} in the end"
    )
    rows = compare("simulated", pools[1], pools[2], encoder, counts, chosen.seeds, chosen.steps)
    if alerts is not None:
        rows += compare("ZTF", alerts, None, encoder, counts, chosen.seeds, chosen.steps)
    table = summary(pd.DataFrame(rows))
    print(table.to_string(index=False, float_format=lambda v: f"{v:.3f}"))
    chosen.output.write_text(json.dumps({"rows": rows, "summary": table.to_dict("records")}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
