"""The entry point: finds the command, runs it, ends with its exit code. Commands are loaded one by one, so that start-up stays fast."""

from __future__ import annotations

import gc
import importlib
import logging
import signal
import sys

import click

import hostbackup
from hostbackup import interrupts
from hostbackup.cli import document, streams
from hostbackup.errors import Exit, HostbackupError, VaultError

COMMANDS = ("check", "backup", "verify", "push", "copy", "sync", "snapshots", "ls", "diff", "restore", "prune", "schema")


class Commands(click.Group):
    """A group whose commands are modules of `hostbackup.cli`, imported when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"hostbackup.cli.{cmd_name}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, 1)
            known = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(COMMANDS)}"
            raise click.UsageError(f"no command {name!r}; {known}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(hostbackup.__version__, prog_name="hostbackup", message="%(prog)s %(version)s")
def cli() -> None:
    """Backs up an old hosting server before its contract ends, proves each byte, and brings it to the new one.

    PROFILE is the path of a TOML file, or a name found in ./profiles/.

    \b
    Completion of commands, options and profiles, for bash (zsh and fish likewise):
      eval "$(_HOSTBACKUP_COMPLETE=bash_source hostbackup)"
    """


def main() -> None:
    """Runs the command line and exits. Nothing but an exit code of the contract leaves here, and never a traceback for a user's mistake."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), interrupts.stop)
    logging.getLogger().addHandler(logging.NullHandler())  # libraries say nothing of their own; errors come back as exceptions
    streams.prepare()
    code = _run(sys.argv[1:])
    streams.finish()
    gc.freeze()  # else the interpreter looks through all that is left for cycles, to free what the system frees with the process
    # An interrupt within some library's exec() is remembered by CPython until the next one, and would end `python -m` by a signal, not by our code.
    exec("")  # noqa: S102 - nothing
    sys.exit(int(code))


def _run(arguments: list[str]) -> int:
    try:
        cli.main(args=arguments, prog_name="hostbackup", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        streams.say(error.format_message(), error=True)
        return Exit.USAGE
    except click.UsageError as error:
        return document.refuse(arguments, error.format_message(), error.ctx.command_path if error.ctx else "")
    except click.ClickException as error:
        return document.refuse(arguments, error.format_message(), "")
    except (click.Abort, KeyboardInterrupt):
        return document.interrupted(arguments)
    except HostbackupError as error:
        return document.refuse(arguments, str(error), "", error)
    except OSError as error:
        return document.refuse(arguments, f"{error.filename or 'output'}: {error.strerror}", "", VaultError(str(error)))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else Exit.FAILED
    return Exit.OK


if __name__ == "__main__":
    main()
