"""The `toolhost` command: wiring, and the one place where an error becomes a line and an exit code.

Exit codes: 0 done; 1 an error, or a tool's result that is one; 2 the command line was wrong; 130 interrupted.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence

import typer

from toolhost.cli import access, host, servers
from toolhost.cli.arguments import CommandLineError
from toolhost.cli.output import error_line, note
from toolhost_sdk.errors import InternalError, ToolhostError

logger = logging.getLogger(__name__)

app = typer.Typer(
    name="toolhost",
    help="Run tool servers for LLM agents, and reach them from a terminal.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: half the start-up time
)
COMMANDS: dict[str, Callable[..., None]] = {
    "serve": host.serve,
    "status": host.status,
    "list": servers.list_servers,
    "call": servers.call,
    "spawn": servers.spawn,
    "stop": servers.stop,
    "drain": servers.drain,
    "logs": servers.logs,
    "config": access.config,
    "doctor": host.doctor,
    "sweep": host.sweep,
    "down": host.down,
}
for command, function in COMMANDS.items():
    app.command(command)(function)
app.add_typer(access.token_app, name="token")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Write the version and exit."),
) -> None:
    if version:
        host.write_version()
        raise typer.Exit
    if context.invoked_subcommand is None:
        note(context.get_help())
        raise typer.Exit(2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `toolhost` script."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Every error has become one line on stderr."""
    try:
        result = typer.main.get_command(app)(list(arguments), prog_name="toolhost", standalone_mode=False)
    except typer.TyperException as error:  # what the command line parser refuses
        text = error.format_message()
        note(text if text.startswith("Usage:") else f"error: {text} [usage]")
        return error.exit_code
    except ToolhostError as error:
        note(error_line(error))
        return 2 if isinstance(error, CommandLineError) else 1
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left; nobody is there to be told
        return 1
    except Exception as error:  # the outermost boundary: a defect of ours is one line too
        logger.debug("unexpected error", exc_info=True)
        note(error_line(InternalError(f"unexpected {type(error).__name__}: {error}")))
        return 1
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    main()
