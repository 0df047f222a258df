"""Treating many exposures so that one bad one does not take the others with it."""

from __future__ import annotations

import errno
import logging
import socket
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import pandas as pd

from astrid_pipeline.errors import AstridError, ServiceError, StoreError
from astrid_pipeline.logs import about
from astrid_pipeline.tables import Column, TableSchema

log = logging.getLogger(__name__)

#: What the operating system says where no exposure is at fault: disk full or broken, too many files open.
_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE}

T = TypeVar("T")
U = TypeVar("U")

PROBLEMS = TableSchema(
    "problems",
    "Exposures that a stage could not treat, and why",
    (
        Column("exposure_id", "string", "the exposure, or the file where no exposure could be read"),
        Column("stage", "string", "asset that was being made"),
        Column("error", "string", "kind of error"),
        Column("what", "string", "what was wrong and what to do"),
        Column("permanent", "bool", "whether trying again cannot help"),
    ),
    sort_by=("stage", "exposure_id"),
)


@dataclass(frozen=True)
class Problem:
    """One exposure that could not be treated."""

    exposure_id: str
    stage: str
    error: str
    what: str
    permanent: bool

    @classmethod
    def of(cls, exposure_id: str, stage: str, error: Exception) -> Problem:
        """Describe `error`; one that AstrID did not foresee is called permanent, since it is a defect."""
        if isinstance(error, AstridError):
            text, permanent = str(error), error.permanent
        elif out_of_memory(error):
            text = f"not enough memory for this exposure: {error} (allow fewer runs at once, or use a larger machine)"
            permanent = False
        else:
            text = f"{type(error).__name__}: {error} (a defect: report it)"
            permanent = not isinstance(error, OSError)
        return cls(exposure_id, stage, type(error).__name__, " ".join(text.split()), permanent)


def out_of_memory(error: Exception) -> bool:
    """Tell whether memory, of the machine or the GPU, was not enough; torch has no one class for it."""
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
    )


@dataclass
class Outcome(Generic[T]):
    """What a stage made of a night: products by exposure, problems, and the seconds each exposure took.

    `metas` holds the products' `meta`, so that a summary need not read spooled pixels back.
    """

    products: MutableMapping[str, T] = field(default_factory=dict)
    metas: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def problem_table(self) -> pd.DataFrame:
        """Return the problems as a table of schema `PROBLEMS`."""
        return PROBLEMS.conform(pd.DataFrame([vars(p) for p in self.problems]))


def for_each(
    items: Mapping[str, U] | Iterable[tuple[str, U]],
    function: Callable[[U], T],
    *,
    stage: str,
    progress: Callable[[str], Any] | None = None,
    into: MutableMapping[str, T] | None = None,
    tolerate: tuple[type[AstridError], ...] = (),
) -> Outcome[T]:
    """Return `function(item)` for every (exposure_id, item); an item that fails becomes a `Problem`.

    Errors that AstrID foresees are told in one line. Any other exception is a defect: it is logged with its
    traceback, and the other exposures are still treated, since a night cannot be had again.

    Trouble that is not an exposure's and passes (the store or the database does not answer, the disk is full) is
    raised: the night would else be kept as made, without the exposures that it met.

    Parameters
    ----------
    items, function:
        What to treat, and how.
    stage:
        Name of the asset, for messages.
    progress:
        Called with a line after each exposure.
    into:
        Where products go, such as a spool on disk, so that one exposure at a time is held; default a dict.
    tolerate:
        Kinds of passing trouble that cost the exposure alone.

    Raises
    ------
    StoreError, ServiceError
        As said above.
    """
    outcome: Outcome[T] = Outcome(products={} if into is None else into)
    pairs = list(items.items()) if isinstance(items, Mapping) else list(items)
    for number, (exposure_id, item) in enumerate(pairs, 1):
        with about(exposure=exposure_id, stage=stage):
            started = time.perf_counter()
            try:
                product = function(item)
                outcome.products[exposure_id] = product
                outcome.metas[exposure_id] = dict(getattr(product, "meta", {}))
                del product
            except AstridError as error:
                passing = isinstance(error, StoreError | ServiceError) and not error.permanent
                if passing and not isinstance(error, tolerate):
                    raise
                outcome.problems.append(Problem.of(exposure_id, stage, error))
                log.warning("%s: %s: %s", stage, exposure_id, error)
            except Exception as error:
                if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
                    raise ServiceError(
                        f"this machine cannot go on: {error.strerror}",
                        where=error.filename or socket.gethostname(),
                        remedy="make room on its disk, or allow it more open files; then run this again",
                    ) from error
                outcome.problems.append(Problem.of(exposure_id, stage, error))
                log.error("%s: %s: unforeseen error\n%s", stage, exposure_id, traceback.format_exc())
            outcome.seconds[exposure_id] = time.perf_counter() - started
            if progress is not None:
                progress(f"{stage} {number}/{len(pairs)} {exposure_id} {outcome.seconds[exposure_id]:.1f} s")
    return outcome
