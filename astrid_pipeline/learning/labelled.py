"""Stamps that people have labelled, as a data set for PyTorch: a folder of arrays and a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor, from_numpy
from torch.utils.data import Dataset

from astrid_pipeline.errors import ModelError, ReadError

IMAGES, MASKS, SAMPLES, FACTS = "images.npy", "masks.npy", "samples.parquet", "facts.json"
#: The same places in the calibrated frame (its units) and in the raw file (counts); NaN where it was gone.
CALIBRATED, RAW = "calibrated.npy", "raw.npy"


class LabelledStamps(Dataset[tuple[Tensor, int]]):
    """Labelled stamps of one folder: `data[i]` is a (4, 63, 63) float32 tensor and 1 (real) or 0 (bogus).

    The planes are science, reference, difference and score in units of the noise; unusable pixels are 0. The arrays are
    mapped, and mapped anew in every worker of a `DataLoader`.

    Parameters
    ----------
    folder:
        As `review.collect` writes it.
    split:
        train, valid or test; None for all.

    Attributes
    ----------
    samples:
        The table, one row a sample.
    facts:
        Name, hash, how it was collected, its quality.

    Raises
    ------
    ReadError
        If the folder holds no such set.
    ModelError
        If the split is empty.
    """

    def __init__(self, folder: Path | str, split: str | None = None) -> None:
        self.folder = Path(folder)
        try:
            self.facts: dict[str, Any] = json.loads((self.folder / FACTS).read_text())
            samples = pd.read_parquet(self.folder / SAMPLES)
        except (OSError, ValueError) as error:
            raise ReadError(
                f"no labelled stamps here: {error}", where=folder, remedy="collect the dataset again"
            ) from error
        self.samples = samples if split is None else samples[samples["split"] == split].reset_index(drop=True)
        if not len(self.samples):
            raise ModelError(f"the split {split!r} is empty", where=folder, remedy="collect more labels")
        self._arrays: dict[str, npt.NDArray[Any]] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getstate__(self) -> dict[str, Any]:
        # A mapping cannot be handed to a worker: it opens the file itself.
        return {**self.__dict__, "_arrays": {}}

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        planes = np.nan_to_num(self._stamp(IMAGES, index).astype(np.float32))
        return from_numpy(planes), int(self.samples["is_anomaly"].iloc[index])

    def _stamp(self, name: str, index: int) -> npt.NDArray[Any]:
        if name not in self._arrays:
            self._arrays[name] = np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
        return np.array(self._arrays[name][int(self.samples["row"].iloc[index])])

    def mask(self, index: int) -> npt.NDArray[np.int32]:
        """Return the (63, 63) mask bits of a sample, the reference's shifted (`imaging.mask`)."""
        return self._stamp(MASKS, index)

    def calibrated(self, index: int) -> npt.NDArray[np.float32]:
        """Return the (63, 63) pixels of a sample in the calibrated frame, its units; NaN where there is none."""
        return self._stamp(CALIBRATED, index)

    def raw(self, index: int) -> npt.NDArray[np.float32]:
        """Return the (63, 63) pixels of a sample as they were read, counts; NaN where the file was gone."""
        return self._stamp(RAW, index)
