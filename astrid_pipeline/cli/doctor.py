"""The command `astrid doctor`: every part is asked, and what is wrong is said in words."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from astrid_pipeline.cli.console import out
from astrid_pipeline.errors import ServiceError
from astrid_pipeline.services import checkup
from astrid_pipeline.services.checkup import Advice, Finding
from astrid_pipeline.services.health import answers
from astrid_pipeline.settings import Settings

_SIGNS = {"ok": "[green]✓[/]", "advice": "[yellow]·[/]", "wrong": "[red]✗[/]"}


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("doctor")(doctor)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    send: Annotated[
        bool, typer.Option("--send", help="Send a test alert by the webhook and the e-mail that are set.")
    ] = False,
) -> None:
    """Ask every part whether it works, and say what is wrong and what to do.

    The database and its schema, Dagster's storage and daemon, MLflow, the archives of the fields, the store (something
    is written and read back), the disks, the device that models run on, the ports, the alert hooks, the clock. Exit
    code 1 if anything is wrong; what is only advice (`·`) does not count.

    Examples:

    - `astrid doctor`

    - `astrid doctor --send` tries the alert hooks as well

    - `astrid doctor --json` for scripts
    """
    from astrid_pipeline.services.notify import alert
    from astrid_pipeline.settings import get_settings

    settings = get_settings()
    findings = examine(settings, (lambda finding: None) if as_json else show)
    if send:
        findings.append(
            checkup.ask(
                "test alert",
                lambda: (
                    "went out by "
                    + (", ".join(alert("AstrID: a test", "Nothing is wrong.", settings)) or "nothing")
                ),
            )
        )
        if not as_json:
            show(findings[-1])
    if as_json:
        out.print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1), soft_wrap=True)
    wrong = sum(not finding.ok for finding in findings)
    if not as_json:
        out.print("Everything works." if not wrong else f"[red]{wrong} of {len(findings)} are wrong.[/]")
    if wrong:
        raise typer.Exit(1)


def show(finding: Finding) -> None:
    """Print one finding, with its remedy below."""
    from rich.markup import escape

    out.print(f"{_SIGNS[finding.state]} {finding.part:<13} {escape(finding.detail)}", soft_wrap=True)
    if finding.remedy:
        out.print(f"  [dim]{'':<13} → {escape(finding.remedy)}[/]", soft_wrap=True)


def examine(settings: Settings, say: Callable[[Finding], None] = lambda _: None) -> list[Finding]:
    """Ask every part, and return what was found; `say` is told each finding as it comes."""
    from astrid_pipeline.services.dagster_home import dagster_instance

    found: list[Finding] = []

    def put(findings: Sequence[Finding]) -> None:
        for finding in findings:
            found.append(finding)
            say(finding)

    put([checkup.ask("database", lambda: checkup.connected(settings))])
    if found[0].ok:
        # Everything here would only say again that the database is away.
        put([checkup.ask("clock", lambda: checkup.clock(settings))])
        pages_run = answers(f"{settings.dagster_page}/server_info", checkup.PATIENCE)

        def storage() -> str:
            with dagster_instance() as instance:
                return checkup.dagster(instance)

        def heartbeat() -> str:
            with dagster_instance() as instance:
                try:
                    return checkup.daemon(instance)
                except ServiceError as error:
                    if pages_run or settings.dagster_url:
                        raise
                    raise Advice("does not run, nor does the Dagster page", remedy=error.remedy) from error

        put([checkup.ask("dagster", storage), checkup.ask("daemon", heartbeat)])
        if settings.dagster_url:
            remedy = "start it, or look at ASTRID_DAGSTER_URL"
            put(
                [
                    checkup.ask(
                        "dagster page", lambda: checkup.page(f"{settings.dagster_page}/server_info", remedy)
                    )
                ]
            )
        put(
            [
                checkup.ask("mlflow", lambda: checkup.tracking(settings)),
                checkup.ask("champion", checkup.champion),
                checkup.ask("archives", lambda: checkup.archives(settings)),
            ]
        )
    put(checkup.quick(settings))
    put([checkup.ask("device", lambda: checkup.device(settings))])
    ports = [("review", settings.review_port, "/static/icon.svg")]
    ports += [] if settings.dagster_url else [("dagster", settings.dagster_port, "/server_info")]
    ports += [] if settings.mlflow_server else [("mlflow", settings.mlflow_port, "/health")]
    for name, number, sign in ports:
        put([checkup.ask(f"{name} port", lambda n=name, p=number, s=sign: checkup.port(settings, n, p, s))])  # type: ignore[misc]
    put([checkup.ask("alerts", lambda: checkup.alerts(settings))])
    return found
