"""Real pixels: VISTA epochs against each other, pairs in which nothing changed, a DECam brightening.

``python -m astrid_pipeline_tests.benchmarks.real`` prints a table; ``--pictures FOLDER`` draws what was found. The data
sets are not AstrID's to give away: they are looked for in $ASTRID_SHARED_DATA, else beside the repository.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from astropy.io import fits
from scipy import ndimage

from astrid_pipeline.cli.compare import open_frame
from astrid_pipeline.errors import AstridError
from astrid_pipeline.imaging import align, coadd, detect_stars, subtract
from astrid_pipeline.imaging.frame import Difference, Frame
from astrid_pipeline.imaging.mask import Mask, is_set
from astrid_pipeline.imaging.photometry import interpolate
from astrid_pipeline.imaging.registration import register
from astrid_pipeline.imaging.subtract.surfaces import robust_sigma
from astrid_pipeline_tests.benchmarks import peers
from astrid_pipeline_tests.benchmarks.figures import Figure
from astrid_pipeline_tests.benchmarks.judge import THRESHOLD, Outcome
from astrid_pipeline_tests.benchmarks.methods import common, of_difference
from astrid_pipeline_tests.benchmarks.pictures import draw

EPOCHS = (1, 2, 3, 7)
#: Peaks this close to a known mover are its own; A is trailed over 40 px.
MOVER_RADIUS = 25.0
#: Stars held out of the fit: one in so many.
HOLD_OUT = 3
#: Least S/N of the stars that registration is judged by.
BRIGHT = 50.0


@dataclass
class Seen:
    """What a method made of a real pair: its outcome, and where the pictures come from."""

    outcome: Outcome
    difference: Difference | None


def folder() -> Path | None:
    """Return the folder of real data sets, or None where it is not."""
    named = os.environ.get("ASTRID_SHARED_DATA")
    found = Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "data"
    return found if (found / "vista_video_A").is_dir() else None


def measure(
    slow_pairs: int = 2,
    pictures: Path | None = None,
    parts: Sequence[str] = (),
    told: Callable[[str], None] = print,
) -> Figure:
    """Return the figures of all real sets; nothing but the reason where the data are not. `told` hears each line."""
    data = folder()
    if data is None:
        told("real pixels: no real data sets (set ASTRID_SHARED_DATA)")
        return {"absent": "no real data sets"}
    out: Figure = {}
    for part in parts or ("null", "decam", "vista"):
        out[part] = {}
        # Hours of work are told as they are done.
        for name, found in SETS[part](data, slow_pairs, pictures):
            out[part][name] = found
            for text in lines(part, name, found):
                told(text)
    return out


def vista(data: Path, slow_pairs: int, pictures: Path | None) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of all ordered pairs of epochs, by method; peers get the first `slow_pairs`."""
    frames = {epoch: open_frame(data / "vista_video_A" / f"image_{epoch}.fits") for epoch in EPOCHS}
    movers = pd.read_csv(data / "vista_video_A" / "transients.csv")
    movers["epoch"] = movers["file"].str.extract(r"image_(\d+)").astype(int)
    for number, (new, old) in enumerate(itertools.permutations(EPOCHS, 2)):
        science, reference = frames[new], frames[old]
        name = f"{new}−{old}"
        out: Figure = {"registration": held_out(reference, science)}
        aligned = align(reference, to=science)
        near = _near_movers(science, movers, (new, old))
        for method in methods(number < slow_pairs):
            try:
                seen = run(method, science, aligned)
            except (AstridError, peers.PeerError) as error:
                out[method] = {"error": str(error)}
                continue
            found = peaks(seen.outcome, near)
            out[method] = {**noise(seen.outcome, near), **_rates(found, seen.outcome)}
            if seen.difference is not None:
                table = seen.outcome.candidates
                assert table is not None
                here = near[
                    np.clip(np.rint(table.y).to_numpy(int), 0, near.shape[0] - 1),
                    np.clip(np.rint(table.x).to_numpy(int), 0, near.shape[1] - 1),
                ]
                out[method]["unflagged_candidates"] = int((~here & (table["flags"] == 0)).sum())
            out[method]["movers"] = _movers(seen.outcome, science, movers, (new, old))
            if pictures is not None and seen.difference is not None:
                draw(pictures / f"vista_{new}_{old}_{method.replace(' ', '_')}.png", seen.difference, found)
        yield name, out


def methods(slow: bool) -> list[str]:
    """Return the methods that can run here."""
    out = ["astrid zogy", "astrid classic"]
    return out + [name for name in peers.PEERS if slow and peers.is_installed(name)]


def run(method: str, science: Frame, aligned: Frame) -> Seen:
    """Subtract by one method; the peers' differences go through the common filter."""
    if method.startswith("astrid"):
        difference = subtract(science, aligned, method=method.split()[1], device="cpu")
        return Seen(of_difference(difference, 0.0), difference)
    image, seconds = peers.subtract(method, science, aligned)
    assert science.variance is not None
    assert aligned.variance is not None
    assert science.psf is not None
    # Without zero points of the epochs' own: the ratio of the stars' fluxes would do no more than scale a constant.
    variance = science.variance + aligned.variance
    masked = is_set(science.mask) | is_set(aligned.mask)
    return Seen(common(image, variance, science.psf.stamp(), masked, seconds), None)


def held_out(reference: Frame, science: Frame) -> Figure:
    """Return how far stars of S/N ≥ `BRIGHT` that the fit did not see lie from where it puts them.

    A third of the science frame's bright stars are masked before registration; their own places in both frames are
    measured on the unmasked frames.
    """
    stars, there = detect_stars(science), detect_stars(reference)
    bright = stars[(stars["snr"] >= BRIGHT)].reset_index(drop=True)
    test = bright.iloc[::HOLD_OUT]
    hidden = np.ones(science.shape, bool)
    hidden[np.rint(test.y).to_numpy(int), np.rint(test.x).to_numpy(int)] = False
    hidden = ndimage.distance_transform_edt(hidden) < 8
    mask = np.where(hidden, science.mask | np.int32(Mask.BAD_PIXEL), science.mask)
    found = register(reference, science.replace(mask=mask))
    u, v = found.function(test.x.to_numpy(float), test.y.to_numpy(float))
    from scipy.spatial import cKDTree

    good = there[there["snr"] >= BRIGHT]
    distance, index = cKDTree(good[["x", "y"]].to_numpy(float)).query(np.column_stack([u, v]))
    near = distance < 2.0
    off = good[["x", "y"]].to_numpy(float)[index[near]] - np.column_stack([u, v])[near]
    return {
        "rms": np.sqrt((off**2).mean(0)).tolist(),
        "robust": [1.4826 * float(np.median(np.abs(o))) for o in off.T],
        "mean": off.mean(0).tolist(),
        "n": int(near.sum()),
        "says": [found.dx_rms, found.dy_rms],
        "n_matched": found.n_matched,
    }


def _near_movers(science: Frame, movers: pd.DataFrame, epochs: tuple[int, int]) -> np.ndarray:
    near = np.zeros(science.shape, bool)
    here = movers[movers.epoch.isin(epochs)]
    assert science.wcs is not None
    xs, ys = science.wcs.all_world2pix(here.ra_deg, here.dec_deg, 0)
    y, x = np.mgrid[: science.shape[0], : science.shape[1]]
    for a, b in zip(xs, ys, strict=True):
        near |= np.hypot(x - a, y - b) < MOVER_RADIUS
    return near


def _movers(outcome: Outcome, science: Frame, movers: pd.DataFrame, epochs: tuple[int, int]) -> Figure:
    """Return the largest score of the right sign within 12 px of each known mover of the two epochs."""
    assert outcome.score is not None
    assert science.wcs is not None
    out = {}
    for mover in movers[movers.epoch.isin(epochs)].itertuples():
        x, y = (float(v) for v in science.wcs.all_world2pix(mover.ra_deg, mover.dec_deg, 0))
        sign = 1 if mover.epoch == epochs[0] else -1
        row, column = round(y), round(x)
        if not (0 <= row < science.shape[0] and 0 <= column < science.shape[1]):
            out[str(mover.id)] = None
            continue
        window = (slice(max(row - 12, 0), row + 13), slice(max(column - 12, 0), column + 13))
        usable = np.where(outcome.masked[window], -np.inf, sign * outcome.score[window])
        out[str(mover.id)] = float(usable.max()) if np.isfinite(usable.max()) else None
    return out


def noise(outcome: Outcome, near: np.ndarray) -> Figure:
    """Return the score's width: of everything, and robustly."""
    assert outcome.score is not None
    values = outcome.score[~outcome.masked & ~near]
    return {
        "sigma": float(values.std()),
        "sigma_robust": float(robust_sigma(values[::3])),
        "masked": float(outcome.masked.mean()),
        "megapixels": len(values) / 1e6,
    }


def peaks(outcome: Outcome, near: np.ndarray) -> pd.DataFrame:
    """Return the peaks over the threshold of either sign, the strongest first."""
    rows = []
    assert outcome.score is not None
    for sign in (1, -1):
        image = sign * outcome.score
        high = (image > THRESHOLD) & ~outcome.masked & ~near & (ndimage.maximum_filter(image, 7) == image)
        y, x = np.nonzero(high)
        rows += [(float(a), float(b), float(image[b, a]), sign) for a, b in zip(x, y, strict=True)]
    table = pd.DataFrame(rows, columns=["x", "y", "score", "sign"])
    return table.sort_values("score", ascending=False, ignore_index=True)


def _rates(found: pd.DataFrame, outcome: Outcome) -> Figure:
    mega = float((~outcome.masked).sum()) / 1e6
    return {
        "positive": int((found.sign > 0).sum()),
        "negative": int((found.sign < 0).sum()),
        "positive_per_megapixel": float((found.sign > 0).sum()) / mega,
        "negative_per_megapixel": float((found.sign < 0).sum()) / mega,
        "peaks": found.head(30).round(2).to_dict("records"),
    }


def null_pairs(data: Path, slow_pairs: int, pictures: Path | None) -> Iterator[tuple[str, Figure]]:
    """Yield what is found where nothing changed, both ways round; raw mosaics become superpixels when calibrated."""
    sets = {
        "eso085-030": ("eso085-030_004.fit", "eso085-030_005.fit"),
        "panoptes": ("panoptes_unsolved.fits", "panoptes_solved.fits.fz"),
    }
    for name, files in sets.items():
        frames = [open_frame(data / "pairs_same_night" / file) for file in files]
        for tag, (science, reference) in ((name, frames), (f"{name} back", frames[::-1])):
            aligned = align(reference, to=science)
            none = np.zeros(science.shape, bool)
            out: Figure = {"shape": science.shape, "bayer": science.meta.get("bayer_pattern")}
            for method in ("astrid zogy", "astrid classic"):
                seen = run(method, science, aligned)
                assert seen.difference is not None
                assert seen.outcome.candidates is not None
                found = peaks(seen.outcome, none)
                flags = seen.outcome.candidates["flags"]
                out[method] = {
                    **noise(seen.outcome, none),
                    **_rates(found, seen.outcome),
                    "candidates": len(flags),
                    "unflagged_candidates": int((flags == 0).sum()),
                    "dx_rms": seen.difference.meta.get("dx_rms"),
                }
                if pictures is not None and method == "astrid zogy":
                    draw(pictures / f"null_{tag.replace(' ', '_')}.png", seen.difference, found)
            yield tag, out


def decam(data: Path, slow_pairs: int, pictures: Path | None) -> Iterator[tuple[str, Figure]]:
    """Yield noise and S/N of the brightening in the stacks, and the same of the published difference."""
    at = data / "decam_sfft_minis"
    truth = pd.read_csv(at / "transients.csv").iloc[0]
    x, y = float(truth["x"]), float(truth["y"])
    stacks = {
        epoch: coadd(
            [open_frame(path) for path in sorted((at / "input_data").glob(f"DEC-OBS{epoch}?.mini.fits"))]
        )
        for epoch in ("04", "18")
    }
    science, reference = stacks["04"], stacks["18"]
    aligned = align(reference, to=science)
    near = np.zeros(science.shape, bool)
    near[int(y) - 8 : int(y) + 9, int(x) - 8 : int(x) + 9] = True
    out: Figure = {}
    for method in ("astrid zogy", "astrid classic"):
        seen = run(method, science, aligned)
        assert seen.difference is not None
        found = peaks(seen.outcome, near)
        out[method] = {
            **noise(seen.outcome, near),
            **_rates(found, seen.outcome),
            **_at(seen.outcome, x, y),
            "score_rescaled": seen.difference.meta["score_rescaled"],
        }
        if pictures is not None:
            draw(
                pictures / f"decam_{method.replace(' ', '_')}.png",
                seen.difference,
                peaks(seen.outcome, np.zeros_like(near)),
            )
    assert science.psf is not None
    for name in ("FinalDifference", "FinalDifference.DeCorr"):
        with fits.open(at / "4check" / f"{name}.fits") as hdus:
            image = np.array(next(h.data for h in hdus if h.data is not None), float)
        masked = ~np.isfinite(image) | is_set(science.mask)
        outcome = common(image, np.ones(image.shape), science.psf.stamp(), masked, 0.0)
        out[f"published {name}"] = {
            **noise(outcome, near),
            **_rates(peaks(outcome, near), outcome),
            **_at(outcome, x, y),
        }
    yield "stack", out


def _at(outcome: Outcome, x: float, y: float) -> Figure:
    """Return score and flux of the strongest pixel within 3 px of a place."""
    assert outcome.score is not None
    assert outcome.photometry is not None
    row, column = round(y), round(x)
    window = outcome.score[row - 3 : row + 4, column - 3 : column + 4]
    b, a = np.unravel_index(int(window.argmax()), window.shape)
    flux, error = outcome.photometry(np.array([column - 3.0 + float(a)]), np.array([row - 3.0 + float(b)]))
    score = interpolate(outcome.score.astype(np.float32), np.array([x]), np.array([y]))
    return {
        "transient_snr": float(window.max()),
        "transient_score_at": float(score[0]),
        "transient_flux": float(flux[0]),
        "transient_flux_err": float(error[0]),
        "transient_masked": bool(outcome.masked[row, column]),
    }


SETS = {"null": null_pairs, "decam": decam, "vista": vista}


def lines(part: str, name: str, by_method: Figure) -> Iterator[str]:
    """Yield the figures of one pair in words."""
    if "registration" in by_method:
        r = by_method["registration"]
        yield f"{part} {name}: {r['n']} held-out stars off by {r['rms'][0]:.3f} {r['rms'][1]:.3f} px rms"
    for method, f in by_method.items():
        if not isinstance(f, dict) or ("sigma" not in f and "error" not in f):
            continue
        if "error" in f:
            yield f"{part} {name} {method:14s} {f['error'][:100]}"
            continue
        text = f"{part} {name:16s} {method:14s} σ {f['sigma']:.3f} (robust {f['sigma_robust']:.3f})"
        text += f", masked {f['masked']:.1%}, over 5 σ a Mpix +{f['positive_per_megapixel']:.1f}"
        text += f" −{f['negative_per_megapixel']:.1f}"
        if "unflagged_candidates" in f:
            text += f", {f['unflagged_candidates']} unflagged"
        if f.get("movers"):
            words = (f"{k} {v:.1f}" if v is not None else f"{k} off" for k, v in f["movers"].items())
            text += f"; movers {', '.join(words)}"
        if "transient_snr" in f:
            text += f"; transient {f['transient_snr']:.1f} σ, flux {f['transient_flux']:.0f}"
            text += f" ± {f['transient_flux_err']:.0f}"
        yield text


def main() -> int:
    """Run what was chosen and print it."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, help="folder for cut-outs of what was found")
    parser.add_argument("--slow-pairs", type=int, default=2, help="VISTA pairs that the slow peers get")
    parser.add_argument("--parts", default="", help="of null, decam, vista; default: all")
    parser.add_argument("--output", type=Path, help="JSON")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(
        chosen.slow_pairs,
        chosen.pictures,
        tuple(filter(None, chosen.parts.split(","))),
        lambda text: print(text, flush=True),
    )
    if chosen.output:
        from astrid_pipeline_tests.benchmarks.accuracy import save

        save(chosen.output, found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
