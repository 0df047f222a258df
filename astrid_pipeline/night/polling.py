"""When each field's archive is asked next: at its own pace, and more and more seldom while it does not answer."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace

from astrid_pipeline.archives.base import Field, pace_of

#: Minutes until a field whose archive did not answer is asked again, at first; doubled with each failure.
FIRST_PAUSE = 5.0
#: Minutes at most: an archive that was down for a day is asked four times a day.
LONGEST_PAUSE = 6 * 60.0
#: Seconds for which a field in which nothing was to be done, and nothing has happened since, is not looked through.
SETTLED_SECONDS = 3600.0


@dataclass
class FieldState:
    """What is remembered of one field.

    Attributes
    ----------
    next:
        Seconds since 1970 of the next poll.
    failures, error:
        Polls in a row without an answer, and the last reason.
    settled, settled_at:
        What stood for the field's exposures and runs when nothing was to be done, and when that was.
    unfinished:
        Observations that the last poll had no time to look at.
    """

    next: float = 0.0
    failures: int = 0
    error: str = ""
    settled: str = ""
    settled_at: float = 0.0
    unfinished: int = 0


@dataclass
class PollState:
    """What a sensor remembers between ticks, as its cursor."""

    fields: dict[str, FieldState] = field(default_factory=dict)

    @classmethod
    def of(cls, cursor: str | None) -> PollState:
        """Return the state of a cursor; a cursor of another form (an older release's) begins anew."""
        try:
            known = json.loads(cursor or "{}")["fields"]
            return cls({str(name): FieldState(**values) for name, values in known.items()})
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls()

    def cursor(self, says: str = "") -> str:
        """Return the state as text. It begins with `says`, for the page shows cursors where it hides messages."""
        fields = {name: asdict(state) for name, state in self.fields.items()}
        return json.dumps({"says": says, "fields": fields}, ensure_ascii=False)

    def is_settled(self, one: Field, signature: str, now: float) -> bool:
        """Return whether nothing was to be done in a field at the last look, and nothing has changed since."""
        state = self.of_field(one)
        return state.settled == signature and now - state.settled_at < SETTLED_SECONDS

    def settle(self, one: Field, signature: str, now: float) -> None:
        """Note that nothing is to be done."""
        state = self.of_field(one)
        state.settled, state.settled_at = signature, now

    def order(self, fields: Iterable[Field]) -> list[Field]:
        """Return the fields, those waiting longest first, so that no field starves; forget those not named."""
        fields = list(fields)
        names = {one.name for one in fields}
        self.fields = {name: state for name, state in self.fields.items() if name in names}
        return sorted(fields, key=lambda one: (self.of_field(one).next, one.name))

    def of_field(self, one: Field) -> FieldState:
        """Return a field's state."""
        return self.fields.setdefault(one.name, FieldState())

    def due(self, one: Field, now: float) -> bool:
        """Return whether the field's archive is to be asked."""
        return self.of_field(one).next <= now

    def answered(self, one: Field, now: float, unfinished: int = 0) -> None:
        """Note that the archive answered; with `unfinished` observations left, the next tick goes on with them."""
        pause = 0.0 if unfinished else 60 * pace_of(one)
        self.fields[one.name] = replace(
            self.of_field(one), next=now + pause, failures=0, error="", unfinished=unfinished
        )

    def silent(self, one: Field, now: float, error: Exception) -> None:
        """Note that the archive did not answer, or refused."""
        failures = self.of_field(one).failures + 1
        pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, pace_of(one)) * 2.0 ** (failures - 1))
        reason = " ".join(str(error).split())
        self.fields[one.name] = replace(
            self.of_field(one), next=now + 60 * pause, failures=failures, error=reason
        )

    def report(self, now: float) -> list[str]:
        """Return one sentence a field that is in trouble: what happened, how often, and when it is asked again."""
        return [
            f"{name}: no answer {_times(state.failures)} ({state.error}); asked again at {_clock(state.next)}"
            for name, state in sorted(self.fields.items())
            if state.failures
        ] + [
            f"{name}: {state.unfinished:,} observations are still to be looked at"
            for name, state in sorted(self.fields.items())
            if state.unfinished and not state.failures
        ]

    def waiting(self, now: float) -> str:
        """Return a sentence about the next regular poll, or ""."""
        later = {
            name: state.next for name, state in self.fields.items() if state.next > now and not state.failures
        }
        if not later:
            return ""
        name = min(later, key=lambda one: later[one])
        return f"next poll: {name} at {_clock(later[name])}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times in a row"


def _clock(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
