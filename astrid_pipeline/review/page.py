"""The vetting page, rendered here; `static/review.js` swaps panels in, so that the next one is there at once."""

from __future__ import annotations

import contextlib
import datetime as dt
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, select_autoescape

from astrid_pipeline import __version__
from astrid_pipeline.catalog import access, gold, labels, queue
from astrid_pipeline.catalog.dossier import dossier
from astrid_pipeline.errors import AstridError, MissingProductError
from astrid_pipeline.imaging.mask import names
from astrid_pipeline.review import loop
from astrid_pipeline.review.access import COOKIE, SESSION_SECONDS, Identity
from astrid_pipeline.review.api import filter_from, no_source, seen_by
from astrid_pipeline.review.context import Context, Here, Reader, context_of
from astrid_pipeline.review.light_curve import light_curve_svg
from astrid_pipeline.review.problems import Problem
from astrid_pipeline.review.schemas import Id, Paged
from astrid_pipeline.review.stamps import sprite_png

router = APIRouter(include_in_schema=False)
#: Rows of the queue on the page at once; `more` loads as many again.
ROWS = 200
#: Scores of every model that a source may have, as they are called on the page.
_SCORES = (
    ("unet_score", "U-Net"),
    ("real_bogus", "real/bogus trees"),
    ("isolation", "isolation forest"),
    ("one_class", "one-class SVM"),
    ("survey_score", "the survey's own score"),
)
_SHAPES = (
    ("fwhm_ratio", "FWHM / PSF"),
    ("elongation", "elongation"),
    ("dipole", "dipole"),
    ("chi2", "χ²"),
    ("neg_fraction", "negative share"),
    ("trail", "trail, px"),
    ("ref_distance", "to a reference source, px"),
    ("masked_fraction", "masked share"),
)


class PageQuery(Paged):
    """A filter as a form sends it: empty values are none."""

    kind: queue.Kind = "detections"


@cache
def _templates() -> Environment:
    folder = Path(__file__).parent / "templates"
    made = Environment(
        loader=FileSystemLoader(folder), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
    )
    made.filters["num"] = _number
    made.globals["version"] = __version__
    return made


def _number(value: Any, digits: int = 3) -> str:
    return "–" if value is None or value != value else f"{float(value):.{digits}f}"


def _render(name: str, status: int = 200, **values: Any) -> HTMLResponse:
    return HTMLResponse(_templates().get_template(name).render(**values), status)


def sexagesimal(ra: float, dec: float) -> str:
    """Return a position as hours and degrees, to 0.01 s and 0.1″."""
    # astropy's Angle does the same in 50 times the time, and every panel asks for it.
    hours = round(ra / 15 * 360_000) % (24 * 360_000)
    degrees = round(abs(dec) * 36_000)
    h, m, s = hours // 360_000, hours // 6000 % 60, hours % 6000 / 100
    d, minutes, seconds = degrees // 36_000, degrees // 600 % 60, degrees % 600 / 10
    return f"{h:02d}:{m:02d}:{s:05.2f} {'-' if dec < 0 else '+'}{d:02d}:{minutes:02d}:{seconds:04.1f}"


@router.get("/")
def root() -> RedirectResponse:
    """Lead to the queue."""
    return RedirectResponse("/review")


def _filled(request: Request) -> PageQuery:
    """Return the filter of a form: fields left empty do not count. Raises `Problem` 422."""
    from pydantic import ValidationError

    try:
        return PageQuery(**{k: v for k, v in request.query_params.items() if v != ""})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        raise Problem(
            422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}", "mend the filter"
        ) from error


@router.get("/review")
def review(request: Request) -> Response:
    """Show the queue and, through the script, its first source."""
    here = context_of(request)
    me = here.gate.identify(request)
    if me is None:
        return RedirectResponse("/sign-in", 303)
    me = here.gate.require(request, "read")
    asked = _filled(request)
    facets = queue.facets(here.catalog)
    if not request.query_params:
        # A night begins with what is new: the latest night, unseen, the surest first.
        latest = facets["nights"][0] if facets["nights"] else None
        asked = PageQuery(night=dt.date.fromisoformat(latest) if latest else None, seen="unseen")
    wanted = filter_from(asked, asked.kind, me.who, gold=True)
    if asked.sort == "worth" and asked.cursor is None:
        here.teacher.refresh(asked.night)
    page = queue.list_sources(here.catalog, wanted, ROWS, asked.cursor)
    chosen = asked.model_dump(mode="json", exclude_none=True, exclude={"limit", "cursor"})
    return _render(
        "review.html",
        me=me,
        rows=page.rows,
        more=urlencode({**chosen, "cursor": page.next}) if page.next else None,
        asked=chosen,
        query=urlencode(chosen),
        facets=facets,
        saved={name: urlencode(query) for name, query in access.saved_filters(here.catalog, me.who).items()},
        sorts=list(queue.SORTS),
        progress=queue.progress(here.catalog, wanted),
        classes=labels.LABEL_CLASSES,
    )


@router.get("/review/rows")
def rows(request: Request, me: Reader, here: Here) -> Response:
    """Return the queue's further rows."""
    asked = _filled(request)
    page = queue.list_sources(
        here.catalog, filter_from(asked, asked.kind, me.who, gold=True), ROWS, asked.cursor
    )
    chosen = asked.model_dump(mode="json", exclude_none=True, exclude={"limit", "cursor"})
    more = urlencode({**chosen, "cursor": page.next}) if page.next else None
    return _render("rows.html", rows=page.rows, more=more)


@router.get("/review/panel/{source_id}")
def panel(here: Here, me: Reader, source_id: Id) -> Response:
    """Return everything about one source, to be swapped into the page."""
    return panel_page(here, me, source_id)


def warm(here: Context) -> None:
    """Do once what a panel and its stamps take: connections, templates, what is imported at first use.

    Raises
    ------
    AstridError
        If the catalogue or the store does not answer.
    """
    here.catalog.warm()
    for name in _templates().list_templates():
        _templates().get_template(name)
    newest = queue.list_sources(here.catalog, queue.Filter(sort="id"), 1).rows
    if newest:
        panel_page(here, Identity("nobody", (), "warm"), int(newest[0]["id"]))
        with contextlib.suppress(MissingProductError):
            sprite_png(here.stamps.get(newest[0]))


def panel_page(here: Context, me: Identity, source_id: int) -> HTMLResponse:
    """Return the panel of a source as somebody may see it. Raises `Problem` 404."""
    return _render("panel.html", **panel_values(here, me, source_id))


def panel_values(here: Context, me: Identity, source_id: int) -> dict[str, Any]:
    """Return what the panel shows."""
    known = dossier(here.catalog, source_id)
    if known is None:
        raise no_source(source_id)
    source = known.source
    about, missing = None, None
    try:
        about = here.stamps.get(source).about
    except AstridError as error:
        missing = f"{error.what} ({error.remedy})"
    placed = source["ra"] is not None
    features = source["features"]
    return {
        "s": seen_by(here, source, me.who, known.history),
        "about": about,
        "missing": missing,
        "history": known.history,
        "before": known.before,
        "coordinates": sexagesimal(source["ra"], source["dec"]) if placed else None,
        "matches": known.matches,
        "near": known.near,
        "curve": light_curve_svg(known.points, source["mjd"]),
        "points": len(known.points),
        "scores": [(title, features[name]) for name, title in _SCORES if features.get(name) is not None],
        "shares": [
            (n[2:], features[n])
            for n in ("p_transient", "p_variable", "p_moving")
            if features.get(n) is not None
        ],
        "alert": features if features.get("survey") else None,
        "shapes": [(title, features[name]) for name, title in _SHAPES if features.get(name) is not None],
        "teaches": features.get("teaches") if source["state"] == "unseen" else None,
        "flags": names(source["flags"]),
        "classes": labels.LABEL_CLASSES,
    }


def _by_object(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first row of each object, with `times`, how many there are."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        kept = found.setdefault(row["object"] or row["key"], {**row, "times": 0})
        kept["times"] += 1
        kept["label_class"] = kept["label_class"] or row["label_class"]
    return list(found.values())


@router.get("/review/report")
def report(here: Here, me: Reader, night: Annotated[dt.date | None, Query()] = None) -> Response:
    """Show what a night's scanning came to."""
    facets = queue.facets(here.catalog)
    if night is None and facets["nights"]:
        night = dt.date.fromisoformat(facets["nights"][0])
    wanted = queue.Filter(night=night)
    kappa, shared = labels.kappa(here.catalog)
    return _render(
        "report.html",
        me=me,
        night=night,
        nights=facets["nights"],
        progress=queue.progress(here.catalog, wanted),
        confirmed=_by_object(
            queue.list_sources(here.catalog, queue.Filter(night=night, seen="real"), 500).rows
        ),
        disputed=queue.list_sources(here.catalog, queue.Filter(night=night, seen="disputed"), 500).rows,
        scanners=gold.scanners(here.catalog).to_dict(orient="records"),
        kappa=kappa,
        shared=shared,
        loop=loop.state(here, 10),
    )


@router.get("/sign-in")
def sign_in_form(request: Request) -> Response:
    """Show the form, or what there is to do where nobody can sign in yet."""
    return _render("sign_in.html", nobody=context_of(request).gate.single_user(), wrong=None)


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    """Begin a session."""
    here = context_of(request)
    given = parse_qs((await request.body())[:4096].decode("utf-8", "replace"))
    name, password = ((given.get(field) or [""])[0] for field in ("name", "password"))
    try:
        cookie = await run_in_threadpool(here.gate.sign_in, request, name, password)
    except Problem as problem:
        return _render("sign_in.html", problem.status, nobody=False, wrong=problem.title)
    answer = RedirectResponse("/review", 303)
    secure = request.url.scheme == "https"
    answer.set_cookie(
        COOKIE, cookie, max_age=SESSION_SECONDS, httponly=True, samesite="strict", secure=secure
    )
    return answer


@router.post("/sign-out")
def sign_out(request: Request, me: Reader) -> Response:
    """End the session."""
    access.audit(context_of(request).catalog, me.who, "sign out", {})
    answer = RedirectResponse("/sign-in", 303)
    answer.delete_cookie(COOKIE)
    return answer
