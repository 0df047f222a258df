"""What Dagster is told of a step that failed: to try it again soon, or that trying again cannot help.

Three ways of trying again lie behind each other: clients ask a server again within seconds (`archives.web`, boto3); a
step is tried again within a minute or two (here), so that what the run has made before it is kept; and the sensor
`failed_partitions` makes the run anew, ten minutes later and more. Dagster's own `RetryPolicy` is not used: it would
try defects again, and steps that a person has stopped.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of what is decorated.

import functools
import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import dagster as dg

from astrid_pipeline.errors import AstridError, LostError

#: Tries of a step after the first. What lasts longer than these is waited out by `failed_partitions`.
MAX_RETRIES = 2
#: Seconds before the first of them, on average: the clients' own tries, of a few, did not do. Doubled for the next.
FIRST_PAUSE = 15.0

F = TypeVar("F", bound=Callable[..., Any])


def as_failure(error: AstridError) -> dg.Failure:
    """Return the Dagster failure for an error: permanent ones are not retried."""
    return dg.Failure(
        description=str(error),
        metadata={
            "error": type(error).__name__,
            "where": error.where or "",
            "remedy": error.remedy or "",
            "permanent": error.permanent,
        },
        allow_retries=not error.permanent,
    )


@contextmanager
def telling_dagster(attempt: int | None) -> Iterator[None]:
    """Turn an `AstridError` into what Dagster is to do about it.

    Parameters
    ----------
    attempt:
        How many times this step was tried before in its run; None outside of steps, where nothing is tried again.

    Raises
    ------
    dagster.RetryRequested
        Where the error may pass. After `MAX_RETRIES`, Dagster fails the step with the error in words.
    dagster.Failure
        Where it stays, or only a new run helps.
    """
    try:
        yield
    except AstridError as error:
        failure = as_failure(error)
        if error.permanent or isinstance(error, LostError) or attempt is None:
            raise failure from error
        failure.__cause__ = error
        # Steps that met the same trouble together do not come back together.
        pause = FIRST_PAUSE * 2.0**attempt * random.uniform(0.5, 1.5)
        raise dg.RetryRequested(max_retries=MAX_RETRIES, seconds_to_wait=pause) from failure


def tried_again(function: F) -> F:
    """Let an asset or op be tried again when it fails for a reason that may pass; goes below `@dg.asset`."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def yielding(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with telling_dagster(_attempt(args, kwargs)):
                yield from function(*args, **kwargs)

        return yielding  # type: ignore[return-value]

    @functools.wraps(function)
    def returning(*args: Any, **kwargs: Any) -> Any:
        with telling_dagster(_attempt(args, kwargs)):
            return function(*args, **kwargs)

    return returning  # type: ignore[return-value]


def _attempt(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return how many times the step was tried before; 0 where it has no context to ask."""
    context = args[0] if args else kwargs.get("context")
    return (
        int(context.retry_number)
        if isinstance(context, dg.AssetExecutionContext | dg.OpExecutionContext)
        else 0
    )
