"""The domain, and the contract that ends: what is known of both."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from hostbackup.profile.fields import (
    Days,
    Host,
    LocalPath,
    Many,
    Moment,
    TimeZone,
    Yearly,
)
from hostbackup.profile.shape import Range, Section, made
from hostbackup.secrets import SecretSource


class Domain(Section):
    """The domain and its zone."""

    name: Host
    """The domain's name."""
    zone: LocalPath | None = None
    """The zone as handed over by the provider."""
    new_nameservers: Many[Host] = ()
    """The name servers after the move."""
    dns_now: Literal["old-host", "new-host", "self", "other"] | None = None
    """Who runs the zone today."""
    dns_after: Literal["old-host", "new-host", "self", "other"] | None = None
    """Who will run it."""
    transfer: bool | None = None
    """Does the registration move too (AuthCode, a month of validity left)."""
    expires: date | None = None
    """When the registration expires."""
    authcode: SecretSource | None = None
    """The code that lets the registration move."""
    authcode_issued: date | None = None
    """When the code was issued; it lapses."""


class Contract(Section):
    """The contract's calendar: what is known so far, and the provider's rules. Days, and times without an offset, are those of `timezone`."""

    provider: Literal["j-motto"] | None = None
    """A preset of the rules below."""
    timezone: TimeZone = "Asia/Tokyo"
    """Where the provider's days begin and end."""
    notice_posted: date | None = None
    """When the notice was sent."""
    notice_accepted: date | None = None
    """When the provider accepted it."""
    end: date | None = None
    """Last day of the old contract, as confirmed by the provider."""
    new_start: date | None = None
    """First day of the new contract."""
    switch_wanted: Moment | None = None
    """When DNS is to be switched."""
    switch_booked: Moment | None = None
    """The switch as booked with the provider."""
    switched: Moment | None = None
    """When DNS was switched."""
    overlap_days: Days | None = None
    """Days for which both servers are wanted after the switch."""
    closed_days: Many[date | Yearly] = ()
    """Days on which the provider does not work, beside weekends and public holidays; \"12-29\" is meant every year."""
    asked: dict[str, str | bool | int | date] = made(default_factory=dict)
    """Answers from the provider: question = answer."""
    groupware: Literal["keep", "cancel", "none", "unknown"] = "unknown"
    """What becomes of a groupware contract beside the hosting."""
    cutoff_day: Annotated[int, Range(least=1, most=31)] | None = None
    """Rule: a notice accepted up to this day of a month counts for that month."""
    end_months: Annotated[int, Range(least=0, most=24)] | None = None
    """Rule: the contract ends with the month so many months after the one the notice counts for."""
    switch_lead_days: Days | None = None
    """Rule: how many days ahead a switch must be booked."""
    transfer_business_days: Days | None = None
    """Rule: business days that a transfer of the registration may take."""
    domain_days_left: Days | None = None
    """Rule: days of validity the registration must have left at its transfer."""
    authcode_days: Days | None = None
    """Rule: days after its issue until which the AuthCode may be used."""
    quiet_days: Days | None = None
    """Rule: days without late mail at the old server before it may go."""
