"""The options that bound how hard a run works servers and the line: the profile's [limits], unless the command line says otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from hostbackup.profile import Profile
    from hostbackup.protocols.limits import Limits

NAMES = ("bwlimit", "connections", "requests", "stall_timeout")


class _Rate(click.ParamType[int]):
    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from hostbackup.profile.fields import parse_rate

        try:
            return parse_rate(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def options(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the four options."""
    seconds, logins, requests = click.FloatRange(min=0, max=86400, min_open=True), click.IntRange(1, 16), click.IntRange(1, 4096)
    for option in (
        click.option("--stall-timeout", type=seconds, metavar="SECONDS", help="A server that owes answers and is silent for so long is gone (60)."),
        click.option("--requests", type=requests, metavar="N", help="SFTP requests at once on a server (as many as pay)."),
        click.option("--connections", type=logins, metavar="N", help="SSH logins at once on a server (1)."),
        click.option("--bwlimit", type=_Rate(), metavar="RATE", help="Bytes a second of web and mail together, such as 500K or 2M."),
    ):
        function = option(function)
    return function


def limits(profile: Profile, told: Mapping[str, Any]) -> Limits:
    """What was told on the command line, else what the profile says."""
    from hostbackup.profile.fields import parse_rate
    from hostbackup.protocols.limits import Limits, RateLimit

    section = profile.limits
    rate = told.get("bwlimit") or (parse_rate(section.bwlimit) if section.bwlimit else 0)
    return Limits(
        connections=told.get("connections") or section.connections,
        requests=told.get("requests") or section.requests or 0,
        stall=told.get("stall_timeout") or section.stall_timeout,
        rate=RateLimit(rate) if rate else None,
    )
