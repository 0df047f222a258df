"""Two files in, detections out: what `astrid detect` does, as functions for a notebook or a script."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from astrid_pipeline.errors import AstridError, ConfigError, DuplicateExposureError, ReadError
from astrid_pipeline.imaging.frame import Difference, Frame
from astrid_pipeline.report.page import ReportInput, write_report
from astrid_pipeline.report.remarks import Remark, number, remarks
from astrid_pipeline.report.tables import write_csv, write_parquet, write_regions, write_whole

STAGES = (
    "load the model",
    "measure the science frame",
    "measure the reference",
    "align and subtract",
    "find candidates",
    "classify",
    "write",
)

#: Scores below this are not told: a network finds thousands of such peaks in a frame, and none of them is real.
LEAST_TOLD = 0.01

#: What the output folder holds; the report lists them.
FILES: Mapping[str, str] = {
    "difference.fits": "difference, score, flux, mask; with their WCS",
    "candidates.parquet": "every candidate with its score, class and measurements",
    "candidates.csv": "the same as text",
    "detections.reg": "regions for DS9",
}


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes
    ----------
    candidates:
        Every candidate, detections first, best first: the columns of `DETECTIONS` and `is_detection`.
    science, reference:
        `meta` of the two frames as measured, before alignment.
    seconds:
        Of each stage.
    """

    difference: Difference
    candidates: pd.DataFrame
    science: Mapping[str, Any]
    reference: Mapping[str, Any]
    settings: Mapping[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def detections(self) -> pd.DataFrame:
        """The candidates that the model calls real."""
        return self.candidates[self.candidates["is_detection"]]

    @property
    def n_candidates(self) -> int:
        """How many peaks of the score pass the S/N threshold; the network may see more than one source in a peak."""
        return int((self.candidates["origin"] == "candidate").sum())

    @property
    def remarks(self) -> list[Remark]:
        """What a reader should know about the result."""
        return remarks(
            self.difference.meta, self.science, self.reference, has_wcs=self.difference.wcs is not None
        )


def open_frame(path: Path) -> Frame:
    """Read and calibrate one file of any instrument, and measure its sky, noise, PSF and depth.

    A raw frame is treated without masters: overscan off, cosmic rays and saturation masked.

    Raises
    ------
    ReadError, HeaderError, PixelError, PSFError
        Naming the file.
    """
    from astrid_pipeline.archives.fits_reader import read_exposure
    from astrid_pipeline.imaging.calibrate import calibrate
    from astrid_pipeline.imaging.quality import assess, prepare

    with _naming(path):
        return assess(prepare(calibrate(read_exposure(path))))


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Give errors raised inside the file's name where they do not say which file they are about."""
    try:
        yield
    except AstridError as error:
        if path.name not in (error.where or ""):
            error.where = str(path) if error.where in (None, path.stem) else f"{path} ({error.where})"
        raise


def compare(
    science_path: Path,
    reference_path: Path,
    *,
    threshold: float = 5.0,
    min_score: float | None = None,
    model: Path | None = None,
    method: str = "zogy",
    device: str | None = None,
    begin: Callable[[str], None] = lambda stage: None,
) -> Comparison:
    """Difference two images and find what changed.

    Parameters
    ----------
    science_path, reference_path:
        FITS files of the same sky, of any instruments; plain, or compressed with gzip, bzip2 or fpack.
    threshold:
        |S/N| that a candidate must reach.
    min_score:
        Probability of being real that makes a candidate a detection; None takes the model's own.
    model:
        Weights (safetensors); None takes the packaged ones.
    method:
        How to subtract: ``zogy`` or ``classic``.
    device:
        ``cpu``, ``cuda``, ``cuda:1``; None takes a GPU if there is one.
    begin:
        Called with the name of each of `STAGES` as it begins.

    Raises
    ------
    ReadError, HeaderError, PixelError, PSFError, RegistrationError, SubtractionError, DuplicateExposureError
        If one of the images cannot be used; the message names the file.
    ModelError
        If the weights are absent or damaged.
    """
    from astrid_pipeline.imaging import find_candidates
    from astrid_pipeline.learning import detect, load_model
    from astrid_pipeline.night.differences import difference_one

    _refuse_same(science_path, reference_path)
    clock = _Clock(begin)
    # A wrong model is told before the images have cost time.
    clock.start("load the model")
    detector = load_model(model)
    clock.start("measure the science frame")
    science = open_frame(science_path)
    clock.start("measure the reference")
    reference = open_frame(reference_path)
    clock.start("align and subtract")
    with _naming(reference_path):
        difference, _ = difference_one(science, reference, method)
    clock.start("find candidates")
    candidates = find_candidates(difference, threshold=threshold)
    clock.start("classify")
    least = detector.threshold if min_score is None else min_score
    scored = detect(difference, candidates, detector, device=device, threshold=min(least, LEAST_TOLD))
    table = with_magnitudes(rank(candidates, scored, least, threshold), science.meta)
    seconds = clock.stop()
    settings = {
        "science": str(science_path),
        "reference": str(reference_path),
        "method": method,
        "threshold": threshold,
        "model": f"{detector.name} {detector.version}",
        "model file": "packaged" if model is None else str(model),
        "detection_from_score": round(least, 4),
        "seconds": f"{sum(seconds.values()):.1f}",
    }
    return Comparison(difference, table, science.meta, reference.meta, settings, seconds)


def rank(
    candidates: pd.DataFrame, scored: pd.DataFrame, min_score: float, min_snr: float = 0.0
) -> pd.DataFrame:
    """Return every candidate and every detection in one table, best first.

    Parameters
    ----------
    candidates:
        Table of schema `CANDIDATES`.
    scored:
        `learning.detect` of them with a low threshold: the peaks of the network, most of them at a candidate.
    min_score:
        Least score of a detection.
    min_snr:
        Least |S/N| of a detection that is no candidate: whoever asks for 5 σ wants nothing fainter, however sure the
        network is.

    Returns
    -------
    DataFrame
        The columns of `DETECTIONS` and `is_detection`. A candidate at which the network has no peak has no score. A
        peak without a candidate is there only if it is a detection; ``origin`` tells it. Several peaks at one
        candidate count as the best of them.
    """
    from astrid_pipeline.learning import DETECTIONS

    scored = scored.assign(is_detection=scored["score"] >= min_score)
    deep_enough = scored["is_detection"] & (scored["snr"].abs() >= min_snr)
    scored = scored[deep_enough | (scored["origin"] == "candidate")]
    scored = scored.sort_values("score", ascending=False, kind="stable")
    again = scored["candidate_id"].duplicated() & (scored["origin"] == "candidate")
    scored = scored[~again]
    silent = candidates[~candidates["candidate_id"].isin(scored["candidate_id"])]
    silent = silent.assign(is_detection=False, origin="candidate").reindex(columns=scored.columns)
    table = pd.concat([part for part in (scored, silent) if len(part)] or [scored], ignore_index=True)
    # Class and id belong to what the model holds for real.
    for column in ("class", "detection_id"):
        table[column] = table[column].astype(object).where(table["is_detection"].astype(bool), None)
    order = pd.DataFrame(
        {"d": table["is_detection"].astype(bool), "s": table["score"].fillna(-1.0), "n": table["snr"].abs()}
    ).sort_values(["d", "s", "n"], ascending=False, kind="stable")
    wanted = [name for name in DETECTIONS.names if name in table] + ["is_detection"]
    table = table.loc[order.index, wanted].reset_index(drop=True)
    return table.assign(is_detection=table["is_detection"].astype(bool))


def with_magnitudes(table: pd.DataFrame, meta: Mapping[str, Any]) -> pd.DataFrame:
    """Return `table` with `mag` and `mag_err` (AB, of the absolute change) also where flux was forced at a peak."""
    zero_point = number(meta, "zero_point")
    missing = (table["mag"].isna() & (table["flux"].abs() > 0)).to_numpy()
    if zero_point is None or not missing.any():
        return table
    flux, error = (table.loc[missing, name].to_numpy(float) for name in ("flux", "flux_err"))
    table = table.copy()
    table.loc[missing, "mag"] = zero_point - 2.5 * np.log10(np.abs(flux))
    # 2.5 / ln 10 = 1.0857: the magnitude's derivative by the relative flux.
    table.loc[missing, "mag_err"] = 1.0857 * error / np.abs(flux)
    return table


class _Clock:
    """Tells which stage begins, and keeps the seconds of each."""

    def __init__(self, begin: Callable[[str], None]) -> None:
        self.begin, self.seconds, self.running = begin, {}, ("", 0.0)  # type: ignore[var-annotated]

    def start(self, stage: str) -> None:
        self.stop()
        self.running = (stage, time.perf_counter())
        self.begin(stage)

    def stop(self) -> dict[str, float]:
        stage, started = self.running
        if stage:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started
        self.running = ("", 0.0)
        return self.seconds


def _refuse_same(science: Path, reference: Path) -> None:
    """Raise if both names lead to the same file or to equal bytes: their difference is zero and means nothing."""
    first, second = _state(science), _state(reference)
    same = os.path.samestat(first, second)
    if not same and first.st_size == second.st_size:
        same = _digest(science) == _digest(reference)
    if same:
        raise DuplicateExposureError(
            "science and reference are the same exposure",
            where=f"{science} and {reference}",
            remedy="name another exposure of the same sky as reference",
        )


def _state(path: Path) -> os.stat_result:
    """Return the file's stat, or raise ReadError where it is absent, a folder, or behind a closed door."""
    try:
        state = path.stat()
    except FileNotFoundError as error:
        raise ReadError("there is no such file", where=path, remedy="check the name") from error
    except OSError as error:
        raise ReadError(
            f"cannot be read: {error.strerror}", where=path, remedy="check its permissions"
        ) from error
    if stat.S_ISDIR(state.st_mode):
        raise ReadError("this is a folder, not an image", where=path, remedy="name one FITS file")
    return state


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise ReadError(
            f"cannot be read: {error.strerror}", where=path, remedy="check its permissions"
        ) from error


def write_results(comparison: Comparison, output: Path) -> dict[str, Path]:
    """Write `FILES` and `report.html` to the folder `output`; return their paths by name.

    Each file is whole or not there; files of an earlier run with these names are replaced.

    Raises
    ------
    ConfigError
        If `output` is not a folder and cannot be made one.
    StoreError
        If a file cannot be written.
    """
    from astrid_pipeline.imaging.io import write_difference

    make_folder(output)
    table = comparison.candidates
    paths = {name: output / name for name in (*FILES, "report.html")}
    write_whole(paths["difference.fits"], lambda name: write_difference(comparison.difference, name))
    write_parquet(table, paths["candidates.parquet"])
    write_csv(table, paths["candidates.csv"])
    write_regions(table, paths["detections.reg"])
    source = ReportInput(
        comparison.difference, table, comparison.science, comparison.reference, comparison.settings, FILES
    )
    write_report(source, paths["report.html"])
    return paths


def make_folder(output: Path) -> None:
    """Make the folder `output`, or raise ConfigError."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot be made a folder: {error.strerror}", where=output, remedy="name another with --output"
        ) from error
