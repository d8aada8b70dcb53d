"""`hostbackup schema`: the profile's JSON Schema, for editors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hostbackup.cli.run import Session
from hostbackup.cli.run import command as made
from hostbackup.jobs.result import Result


@made("schema", "The JSON Schema of a profile, for editors.", profile=False)
def command(session: Session) -> None:
    """Print the JSON Schema of a profile, for editors that complete and check TOML. With --json it is the document's key `schema`."""
    from hostbackup.profile.schema import json_schema

    result = Result(session.observer)
    result.details["schema"] = json_schema()
    session.end(result, _lines, bare=True)


def _lines(details: Mapping[str, Any], result: Result) -> list[str]:
    return [json.dumps(details["schema"], indent=2)]
