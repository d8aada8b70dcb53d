"""What the documents say is so: commands, options, keys, exit codes and files that they name exist."""

from __future__ import annotations

import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from hostbackup import profile
from hostbackup.cli.main import COMMANDS
from hostbackup.errors import Exit
from hostbackup.profile import Profile, shape
from hostbackup.profile.explain import fields
from hostbackup.profile.shape import Section

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = (ROOT / "profiles" / "example.toml").read_text(encoding="utf-8")


def fenced(language: str) -> list[str]:
    """The README's code blocks in a language, "" for plain ones."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for told, text in blocks if told == language]


def command(name: str) -> click.Command:
    found = importlib.import_module(f"hostbackup.cli.{name}").command
    assert isinstance(found, click.Command)
    return found


def options(name: str) -> set[str]:
    return {option for parameter in command(name).params for option in parameter.opts if option.startswith("-")} | {"--help"}


def test_every_command_is_in_the_readme() -> None:
    rows = [row for row in README.splitlines() if row.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`([a-z]+)`", row.split("|")[1])}
    assert set(COMMANDS) <= told


def test_every_command_in_the_readme_exists_with_the_options_shown() -> None:
    shown = re.findall(
        r"hostbackup ([a-z]+)((?:[^\n`|&]|\\\n)*)", "\n".join([*fenced("sh"), *fenced(""), *re.findall(r"`(hostbackup [^`]+)`", README)])
    )
    assert len(shown) > 10
    for name, rest in shown:
        assert name in COMMANDS, name
        for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", rest.partition("#")[0]):
            assert option in options(name), f"{name} {option}"


def test_the_options_in_the_table_of_commands_exist() -> None:
    for row in README.splitlines():
        names = re.findall(r"`([a-z]+)`", row.split("|")[1]) if row.startswith("| `") else []
        for name in set(names) & set(COMMANDS):
            for option in re.findall(r"`(--[a-z-]+)", row):
                assert option in options(name), f"{name} {option}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    shown = command(name)
    assert shown.help
    for parameter in shown.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
    for option in ("--json", "--quiet", "--verbose", "--log-file") if name != "schema" else ("--json",):
        assert option in options(name)


def test_every_exit_code_is_in_the_readme() -> None:
    table = README.partition("| exit code |")[2].partition("\n\n")[0]
    told = {int(code) for row in re.findall(r"^\| ([0-9, ]+) \|", table, re.MULTILINE) for code in row.split(",")}
    assert told == {int(code) for code in Exit}


def test_profiles_in_the_readme_are_valid(tmp_path: Path) -> None:
    shown = fenced("toml")
    assert shown
    for text in shown:
        profile.parse(text, tmp_path / "shown.toml")


def test_every_profile_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = sorted((ROOT / "profiles").glob("*.toml"))
    assert found
    for path in found:
        loaded = profile.load(path.stem)
        assert loaded.old_accounts()


def test_the_example_profile_holds_no_secret() -> None:
    assert not [key for key, source in profile.load(ROOT / "profiles" / "example.toml").secrets() if source.literal]


def sections(model: type[Section], path: str = "") -> Iterator[tuple[str, str]]:
    """(section, key) of every key that holds a value."""
    for key, info in fields(model).items():
        inner = list(shape.sections(info.annotation))
        for one in inner:
            yield from sections(one, f"{path}.{key}".lstrip("."))
        if not inner:
            yield path, key


def test_the_example_profile_shows_every_key() -> None:
    missing = [f"{section}.{key}" for section, key in sections(Profile) if not re.search(rf"^[#\s]*{key}\s*=|#.*\b{key} = ", EXAMPLE, re.MULTILINE)]
    assert missing == []


def test_the_example_profile_shows_every_section() -> None:
    the_same_keys = {"new.imap.account", "new.imap.master", "old.pop3.account"}
    for section in {section for section, _ in sections(Profile) if section} - the_same_keys:
        assert re.search(rf"^(# )?\[\[?{re.escape(section)}\]", EXAMPLE, re.MULTILINE), section


def test_what_stands_commented_out_in_the_example_exists_too() -> None:
    known = set(sections(Profile)) | {("copy", key) for form in shape.sections(fields(Profile)["copy"].annotation) for key in fields(form)}
    section = ""
    checked = 0
    for number, line in enumerate(EXAMPLE.splitlines(), 1):
        if header := re.match(r"(?:# )?\[\[?([a-z0-9.]+)\]", line):
            section = header[1]
        elif re.match(r"# [a-z_]+ = ", line):
            (key,) = tomllib.loads(line.removeprefix("# "))
            assert (section, key) in known, f"line {number}: {section}.{key}"
            checked += 1
    assert checked > 20


def test_files_that_the_readme_names_exist() -> None:
    for name in set(re.findall(r"(?<![\w/])((?:scripts|docs|tests|hostbackup)/[a-z][a-z/_.-]*[a-z])\b", README)):
        assert (ROOT / name).exists(), name


def texts() -> Iterator[tuple[Path, str]]:
    """Every text file of the project."""
    for top in ("README.md", "LICENSE", "pyproject.toml", ".ci", ".gitignore", "docs", "hostbackup", "profiles", "scripts", "tests"):
        path = ROOT / top
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and not any("cache" in part for part in file.relative_to(ROOT).parts):
                yield file, file.read_text(encoding="utf-8", errors="replace")


def test_nothing_names_a_registry_or_a_path_of_one_machine() -> None:
    # Written in pieces, so that this file does not hold what it looks for.
    unwanted = re.compile(
        "|".join(
            ["/" + "work/", "/" + "opt/", "/root/" + "venv", "file" + ":///", r"(?<!emit)-index" + r"-url\b", "find" + "-links", "/" + "simple\\b"]
        )
    )
    found = [f"{path.relative_to(ROOT)}: {match[0]}" for path, text in texts() if (match := unwanted.search(text))]
    assert found == []


def test_the_lock_has_one_exact_version_a_package() -> None:
    lines = [line for line in (ROOT / "tests" / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    names = [re.match(r"([a-z0-9.-]+)==[0-9][0-9a-z.]*(?: ; .+)?$", line) for line in lines]
    assert all(names), [line for line, match in zip(lines, names, strict=True) if not match]
    locked = {match[1] for match in names if match}
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())
    ranges = [*wanted["project"]["dependencies"], *wanted["project"]["optional-dependencies"]["s3"], *wanted["dependency-groups"]["test"]]
    for requirement in ranges:
        name = re.split(r"[\[<>=!~ ]", requirement)[0].lower()
        assert name in locked, name


def test_every_scenario_names_tests_that_exist() -> None:
    rows = [
        row for row in (ROOT / "tests" / "SCENARIOS.md").read_text("utf-8").splitlines() if row.startswith("| ") and not row.startswith("| case |")
    ]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`([a-z0-9_]+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            assert re.search(rf"^ *def {test}\(", (ROOT / "tests" / file).read_text("utf-8"), re.MULTILINE), f"{file}::{test}"
