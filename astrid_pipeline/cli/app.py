"""The commands of `astrid`, and what becomes of their errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from astrid_pipeline import __version__
from astrid_pipeline.cli import champion, curate, detect, doctor, key, models, review, score, survey, upkeep
from astrid_pipeline.cli.console import err, print_error, quiet_libraries
from astrid_pipeline.errors import AstridError

#: A defect of AstrID itself, told apart from what a user can mend (1 and 2).
EXIT_DEFECT = 70
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="astrid",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`astrid COMMAND --help` tells more, with examples. Every error is one line that says what to do; exit "
    "codes: 0 done, 1 something failed, 2 something handed over cannot be used, 70 a defect of AstrID.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"astrid {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Let the libraries' log lines through.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; goes anywhere.")
    ] = False,
) -> None:
    """**AstrID** turns telescope images into vetted transient detections, and those into better models.

    With two images of your own: `astrid detect NEW.fits OLD.fits`.
    To see everything at work: `astrid demo`. To work with it: `astrid dev`.
    """
    quiet_libraries(verbose)


detect.register(app)
survey.register(app)
models.register(app)
champion.register(app)
review.register(app)
key.register(app)
score.register(app)
curate.register(app)
doctor.register(app)
upkeep.register(app)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: `AstridError.exit_code`, or 70 for a defect.

    Parameters
    ----------
    arguments:
        As in `sys.argv[1:]`, which is the default.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given or os.environ.get("ASTRID_DEBUG", "") not in ("", "0")
    given = [argument for argument in given if argument != "--debug"]
    try:
        code = app(given, standalone_mode=False)
        code = code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except AstridError as error:
        if debug:
            err.print_exception()
        print_error(str(error))
        return error.exit_code
    except typer.Exit as exit_:
        return exit_.exit_code
    except Exception as error:  # noqa: BLE001  the last resort: named in one line, told as a defect
        return _unforeseen(error, debug)
    if code == EXIT_INTERRUPTED:
        err.print("stopped")
    return code


def leave() -> None:
    """End what a command may have left running: a database server that nobody uses any more."""
    if "astrid_pipeline.resources.catalogue" in sys.modules:
        from astrid_pipeline.resources.catalogue import leave_database

        leave_database()


def _unforeseen(error: Exception, debug: bool) -> int:
    """Tell a wrong command (click says how), a broken pipe, or a defect."""
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        context = getattr(error, "ctx", None)
        print_error(error.format_message())
        if context is not None:
            err.print(f"See [bold]{context.command_path} --help[/]")
        return int(error.exit_code)
    if isinstance(error, BrokenPipeError):
        # The reader (`| head`) has gone; nothing is left to say, and Python must not try to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if debug:
        err.print_exception(show_locals=False)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    print_error(f"{text} (a defect of AstrID: run again with --debug and report what it shows)")
    return EXIT_DEFECT
