"""`hostbackup schema`: the profile's JSON Schema, for editors."""

from __future__ import annotations

import json

import click


@click.command("schema", short_help="The JSON Schema of a profile, for editors.")
@click.option("--json", "as_json", is_flag=True, help="Accepted for uniformity: the output is JSON in any case.")
def command(as_json: bool) -> None:
    """Print the JSON Schema of a profile, for editors that complete and check TOML."""
    from hostbackup.profile import json_schema

    click.echo(json.dumps(json_schema(), indent=2))
