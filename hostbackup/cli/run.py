"""What every command shares: its options, its observer, its log, and how it ends."""

from __future__ import annotations

import datetime
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from click.shell_completion import CompletionItem

from hostbackup.cli import document
from hostbackup.cli import limits as network_limits
from hostbackup.cli.progress import Chorus, Plain, Progress
from hostbackup.cli.streams import say
from hostbackup.errors import Exit, HostbackupError, SecretError, UsageError, worst
from hostbackup.jobs.context import Job
from hostbackup.jobs.result import Result
from hostbackup.model import Failure, Observer
from hostbackup.profile import Profile, load
from hostbackup.protocols.limits import Limits
from hostbackup.report.words import one_line, printable
from hostbackup.secrets import Secret, redact
from hostbackup.vault.vault import FORMAT_FILE, Mode, Vault

_LAST = (*network_limits.NAMES, "json", "quiet", "verbose", "log_file")  # options that a command has in common with others

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(slots=True)
class Output:
    """How a command is to speak."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    log_file: Path | None = None


class Log(Observer):
    """Everything that is told, with the time, into a file; secrets taken out. Opened anew for each line, so that a log can be rotated away."""

    def __init__(self, path: Path, secrets: Callable[[], list[Secret]]) -> None:
        self._path = path
        self._secrets = secrets

    def write(self, text: str) -> None:
        line = f"{document.moment(datetime.datetime.now(datetime.UTC))} {redact(one_line(text), self._secrets())}\n"
        try:
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line)
        except OSError as error:
            raise UsageError(f"the log file cannot be written: {error.strerror}", where=str(self._path), hint="see --log-file") from error

    def phase(self, title: str, entries: int | None = None, size: int | None = None) -> None:
        self.write(title)

    def note(self, text: str) -> None:
        self.write(text)

    def warn(self, text: str) -> None:
        self.write(f"warning: {text}")

    def failure(self, failure: Failure) -> None:
        from hostbackup.report.failures import failure_line

        self.write(f"FAILED {failure_line(failure)}")


@dataclass(slots=True)
class Session:
    """One command line at work."""

    command: str
    output: Output
    profile_name: str = ""
    limits_told: Mapping[str, Any] = field(default_factory=dict)
    profile: Profile | None = None
    observer: Observer = field(default_factory=Observer)
    started: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC))
    secrets: list[Secret] = field(default_factory=list)
    new_vault: bool = False  # whether this run began one
    _progress: Progress | None = None

    def __post_init__(self) -> None:
        observers: list[Observer] = []
        if not self.output.quiet and not self.output.verbose and sys.stderr.isatty():
            self._progress = Progress()
            observers.append(self._progress)
        else:
            observers.append(Plain(quiet=self.output.quiet, verbose=self.output.verbose))
        if self.output.log_file is not None:
            log = Log(self.output.log_file, lambda: self.secrets)
            log.write(f"hostbackup {self.command} {self.profile_name}".rstrip())
            observers.append(log)
        self.observer = Chorus(*observers)

    def load(self, *reaches: str) -> Profile:
        """The profile. `reaches`: the sections whose servers this command talks to ("old", "new", "copy"); only their files and secrets have to
        be there, but those are checked before anything begins. Raises UsageError's family.
        """
        if self.profile is None:
            self.profile = load(self.profile_name, files=bool(reaches))
            if reaches:
                self.profile.old_accounts()
                self.profile.expected_mailboxes()
            problems = [problem for problem in self.profile.check_secrets() if problem.where.startswith(reaches)]
            if len(problems) == 1:
                raise problems[0]
            if problems:
                raise SecretError("\n".join(map(str, problems)))
        return self.profile

    @contextmanager
    def preview(self) -> Iterator[Job]:
        """As `job`, for a dry run: the vault is only read, whoever else is at work; where there is none yet, an empty one that does not last."""
        if (self.load().vault / FORMAT_FILE).exists():
            with self.job("read") as job:
                yield job
            return
        import tempfile

        with tempfile.TemporaryDirectory(prefix="hostbackup-") as folder, self._open(Path(folder) / "vault", "write", create=True) as job:
            yield job

    @contextmanager
    def job(self, mode: Mode, *, create: bool = False) -> Iterator[Job]:
        """The vault open and locked, and the connections ready."""
        vault = self.load().vault
        self.new_vault = create and not (vault / FORMAT_FILE).exists()
        with self._open(vault, mode, create=create) as job:
            yield job

    @contextmanager
    def _open(self, folder: Path, mode: Mode, *, create: bool) -> Iterator[Job]:
        profile = self.load()
        with Vault.open(folder, mode, create=create, command=self.command) as vault:
            job = Job.of(profile, vault, self.observer, self.ask if self.can_ask else None, self.limits)
            job.connections.on_secret = self.secrets.append
            try:
                yield job
            finally:
                if mode != "read":
                    vault.flush()

    @property
    def limits(self) -> Limits:
        return network_limits.limits(self.load(), self.limits_told)

    @property
    def can_ask(self) -> bool:
        return sys.stdin.isatty() and sys.stderr.isatty() and not self.output.json

    def ask(self, question: str) -> str:
        """A secret, typed unseen."""
        if self._progress is not None:
            self._progress.close()
        import getpass

        return getpass.getpass(f"{printable(question)}: ", stream=sys.stderr)

    def end(self, result: Result, show: Callable[[Mapping[str, Any], Result], list[str]], *, bare: bool = False) -> NoReturn:
        """Prints what came of it and exits. `bare`: nothing but that, for output that other programs read."""
        code = result.exit
        self._close()
        if self.new_vault and self.profile is not None:
            result.details["new_vault"] = str(self.profile.vault)
        if self.output.json:
            self._emit(code, result.counts, result.failures, result.details)
        elif not self.output.quiet:
            for line in show(result.details, result):
                say(printable(line))
        if not bare:
            self._tell_failures(code, result)
        sys.exit(int(code))

    def stream(self, result: Result, key: str, rows: Iterable[Mapping[str, Any]], line: Callable[[Mapping[str, Any]], str]) -> NoReturn:
        """Prints rows as they come, in flat memory, and exits; with `--json` they are the document's key `key`."""
        if self.output.json:
            result.details[key] = list(rows)
            result.counts[key] = len(result.details[key])
        else:
            for row in rows:
                result.counts[key] += 1
                say(line(row))
        code = result.exit
        self._close()
        if self.output.json:
            self._emit(code, result.counts, result.failures, result.details)
        sys.exit(int(code))

    def _tell_failures(self, code: Exit, result: Result) -> None:
        if not (result.failures or code) and (self.output.quiet or self.output.json):
            return
        from hostbackup.report.failures import closing, failure_lines

        for line in failure_lines(result.failures, everything=self.output.verbose):
            say(redact(printable(line), self.secrets), error=True)
        if code or not (self.output.quiet or self.output.json):
            say(closing(self.command, code), error=bool(code))

    def _emit(self, code: int, counts: Mapping[str, int], failures: list[Failure], details: Mapping[str, Any]) -> None:
        profile = self.profile.name if self.profile else self.profile_name
        clean = [replace(one, reason=redact(one.reason, self.secrets), hint=redact(one.hint, self.secrets)) for one in failures]
        told = document.told(
            command=self.command, profile=profile, exit_code=code, started=self.started, counts=counts, failures=clean, details=details
        )
        document.emit(told)

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.close()

    def fail(self, error: HostbackupError) -> NoReturn:
        """Ends with an error that stopped the whole command."""
        self._close()
        code = worst([error.exit])
        if self.output.log_file is not None:
            Log(self.output.log_file, lambda: self.secrets).write(f"FAILED {error}")
        if self.output.json:
            self._emit(code, {}, [document.failure_of(error)], {})
        for line in str(error).splitlines():
            say(f"hostbackup {self.command}: {redact(printable(line), self.secrets)}", error=True)
        sys.exit(int(code))

    def interrupted(self) -> NoReturn:
        self._close()
        if self.output.json:
            reason = "interrupted; what was brought so far is kept, the next run goes on from there"
            self._emit(Exit.INTERRUPTED, {}, [Failure("", "", b"", "interrupted", reason)], {})
        say(f"hostbackup {self.command}: interrupted; what was brought so far is kept, run it again to go on", error=True)
        sys.exit(int(Exit.INTERRUPTED))


def _complete_profile(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names in ./profiles/, and any file."""
    names = sorted(path.stem for path in Path("profiles").glob("*.toml"))
    return [CompletionItem(name) for name in names if name.startswith(incomplete)] + [CompletionItem(incomplete, type="file")]


def command(name: str, short: str, *, profile: bool = True, network: bool = False) -> Callable[[Callable[..., None]], click.Command]:
    """Makes a click command of a function that takes a Session and its own options, with what all commands share.

    `network`: it works servers, and takes the options that bound how hard.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def wrapped(*, json: bool, quiet: bool, verbose: bool, log_file: Path | None, **options: Any) -> None:
            output = Output(json, quiet, verbose, log_file)
            limits = {key: options.pop(key) for key in network_limits.NAMES} if network else {}
            try:
                session = Session(name, output, options.pop("profile", None) or "" if profile else "", limits)
            except HostbackupError as error:
                Session(name, Output(json, quiet)).fail(error)
            try:
                function(session, **options)
            except HostbackupError as error:
                session.fail(error)
            except KeyboardInterrupt:
                session.interrupted()

        decorated: Any = network_limits.options(wrapped) if network else wrapped
        if profile:
            decorated = click.argument("profile", metavar="PROFILE", shell_complete=_complete_profile)(decorated)
        decorated = click.option(
            "--log-file", type=click.Path(path_type=Path, dir_okay=False), help="Also write what happens, with times, to a file."
        )(decorated)
        decorated = click.option("-v", "--verbose", is_flag=True, help="Say more: each step, each failure, each of many mailboxes.")(decorated)
        decorated = click.option("-q", "--quiet", is_flag=True, help="Say nothing unless something is wrong.")(decorated)
        decorated = click.option("--json", is_flag=True, help="One JSON document on stdout (docs/json.md).")(decorated)
        made: click.Command = click.command(name, short_help=short)(decorated)
        made.params.sort(key=lambda parameter: _LAST.index(parameter.name) + 1 if parameter.name in _LAST else 0)
        return made

    return decorate
