"""Which failed runs are worth another try, when, and which are not and why."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from astrid_pipeline import errors

#: Tries after the first: a service that is down for longer is looked at by a person.
MAX_RETRIES = 3
#: Minutes after a failure before the first retry; doubled for each further one.
FIRST_PAUSE = 10.0
#: Tag of a run that is a retry, with its number; the last one takes what can be had.
RETRY_TAG = "astrid/retry"


@dataclass(frozen=True)
class FailedRun:
    """A run that failed: job and partition, when (seconds since 1970), the how manieth retry it was, and why.

    `permanent` is what the error itself said of trying again; None where it said nothing, and its class must do.
    """

    run_id: str
    job: str
    partition: str
    failed_at: float
    retry: int
    error: str
    message: str
    permanent: bool | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What was to be made."""
        return self.job, self.partition


@dataclass(frozen=True)
class Verdicts:
    """What is to be done: runs to try again now, later, and never, each with its reason in words."""

    now: list[FailedRun]
    later: dict[FailedRun, float]
    never: dict[FailedRun, str]


def is_permanent(error: str) -> bool:
    """Return whether an error of this class stays whatever one does; errors that AstrID did not foresee do.

    A run without an error of its own died (killed, out of memory), which is worth another try.
    """
    if not error:
        return False
    if error in ("OSError", "ConnectionError", "TimeoutError", "MemoryError", "OperationalError"):
        return False
    kinds = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}
    kind = kinds.get(error)
    return True if kind is None else bool(getattr(kind, "permanent", True))


def judge(failed: Iterable[FailedRun], succeeded_at: Mapping[tuple[str, str], float], now: float) -> Verdicts:
    """Return the verdict on each failure that nothing newer has superseded.

    Parameters
    ----------
    failed:
        Failed runs, in any order; of several of one job and partition the newest counts.
    succeeded_at:
        When each job and partition last succeeded or began anew, seconds since 1970.
    now:
        The present.
    """
    newest: dict[tuple[str, str], FailedRun] = {}
    for run in failed:
        if run.failed_at > newest.get(run.key, run).failed_at or run.key not in newest:
            newest[run.key] = run
    out = Verdicts([], {}, {})
    for key, run in sorted(newest.items()):
        if succeeded_at.get(key, 0.0) > run.failed_at:
            continue
        due = run.failed_at + 60 * FIRST_PAUSE * 2.0**run.retry
        if is_permanent(run.error) if run.permanent is None else run.permanent:
            out.never[run] = "trying again cannot help"
        elif run.retry >= MAX_RETRIES:
            out.never[run] = f"{run.retry} retries did not help"
        elif due <= now:
            out.now.append(run)
        else:
            out.later[run] = due
    return out
