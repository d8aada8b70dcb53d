"""Secrets: looked up when asked for, told to nobody else."""

from __future__ import annotations

import copy
import json
import os
import pickle
import signal
import sys
import traceback
from pathlib import Path

import keyring
import keyring.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup import secrets
from hostbackup.errors import Exit, SecretError
from hostbackup.secrets import Secret, SecretSource, redact

PASSWORD = "pass ワード'\"\\ 1"


def source(value: object, base: Path = Path("/")) -> SecretSource:
    return SecretSource.parse(value, base)


def reason(value: object, base: Path = Path("/")) -> str:
    with pytest.raises(SecretError) as caught:
        source(value, base).resolve("old.ssh.password")
    assert caught.value.where == "old.ssh.password"
    assert caught.value.exit == Exit.USAGE
    return str(caught.value)


def test_a_secret_shows_itself_only_when_asked_to() -> None:
    secret = Secret(PASSWORD)
    assert secret.reveal() == PASSWORD
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret:>40}", "%s" % secret, f"{[secret]!r}", json.dumps(secret, default=str)):  # noqa: UP031
        assert PASSWORD not in shown
        assert "********" in shown
    with pytest.raises(TypeError):
        json.dumps(secret)


def test_a_secret_is_never_pickled() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="never pickled"):
            pickle.dumps(Secret(PASSWORD), protocol)
    with pytest.raises(TypeError):
        pickle.dumps(SecretSource.of(PASSWORD))


def test_a_copy_of_a_secret_is_the_secret() -> None:
    secret = Secret(PASSWORD)
    assert copy.copy(secret) is secret
    assert copy.deepcopy([secret])[0] is secret


def test_secrets_compare_by_what_they_hold() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
    assert not Secret("")


def test_a_traceback_with_its_local_variables_tells_no_secret() -> None:
    def fails(password: Secret) -> None:
        held = [password, SecretSource.of(PASSWORD)]
        raise ValueError(f"cannot log in with {held}")

    try:
        fails(Secret(PASSWORD))
    except ValueError as error:
        told = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
        # The test's own module holds the word; a frame of `fails` shows its locals by repr.
        assert PASSWORD not in told.replace(repr(PASSWORD), "")
        assert "********" in told


def test_the_environment_is_read_when_asked_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HB_TEST_SECRET", raising=False)
    told = source({"env": "HB_TEST_SECRET"})
    assert "HB_TEST_SECRET is not set" in reason({"env": "HB_TEST_SECRET"})
    monkeypatch.setenv("HB_TEST_SECRET", " kept as it is \n")
    assert told.resolve("x").reveal() == " kept as it is \n"
    monkeypatch.setenv("HB_TEST_SECRET", "")
    assert "is empty" in reason({"env": "HB_TEST_SECRET"})


@pytest.mark.parametrize(
    ("written", "read"), [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), (" a ", " a "), ("a\r", "a\r"), ("ひみつ\n", "ひみつ")]
)
def test_a_file_loses_one_final_newline_and_nothing_else(tmp_path: Path, written: str, read: str) -> None:
    (tmp_path / "secret").write_bytes(written.encode())
    assert source({"file": "secret"}, tmp_path).resolve("x").reveal() == read


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "s").write_text("one")
    assert source({"file": "~/s"}, Path("/elsewhere")).resolve("x").reveal() == "one"


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    assert "nothing-here cannot be read: No such file" in reason({"file": "nothing-here"}, tmp_path)
    (tmp_path / "latin").write_bytes(b"\xe9\n")
    assert "not UTF-8" in reason({"file": "latin"}, tmp_path)
    (tmp_path / "empty").write_bytes(b"\n")
    assert "is empty" in reason({"file": "empty"}, tmp_path)
    (tmp_path / "nul").write_bytes(b"a\0b")
    assert "NUL" in reason({"file": "nul"}, tmp_path)


def test_a_command_runs_in_the_profiles_folder_without_a_shell(tmp_path: Path) -> None:
    program = "import os,sys; print(os.getcwd(), sys.argv[1:])"
    asked = source({"command": [sys.executable, "-c", program, "$(id); *"]}, tmp_path)
    assert asked.resolve("x").reveal() == f"{tmp_path} ['$(id); *']"


def test_a_command_may_be_one_text_split_into_words(tmp_path: Path) -> None:
    assert source({"command": "printf '%s\\n' 'two words'"}, tmp_path).resolve("x").reveal() == "two words"


def test_a_program_beside_the_profile_is_found(tmp_path: Path) -> None:
    program = tmp_path / "show"
    program.write_text("#!/bin/sh\necho beside\n")
    program.chmod(0o700)
    asked = source({"command": "./show"}, tmp_path)
    assert asked.problem("x") is None
    assert asked.resolve("x").reveal() == "beside"


def test_a_failing_command_tells_what_it_said_but_not_what_it_printed(tmp_path: Path) -> None:
    program = f"import sys; print({PASSWORD!r}); print('no\\x1b[2J such entry', file=sys.stderr); sys.exit(3)"
    told = reason({"command": [sys.executable, "-c", program]}, tmp_path)
    assert "ended with 3" in told
    assert "such entry" in told
    assert "\x1b" not in told
    assert PASSWORD not in told


def test_a_command_that_hangs_is_ended_even_if_a_child_keeps_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "COMMAND_SECONDS", 0.2)
    assert "gave nothing within" in reason({"command": ["sh", "-c", "sleep 30 & echo $! > pid; wait"]}, tmp_path)
    pid = (tmp_path / "pid").read_text().strip()
    os.kill(int(pid), signal.SIGKILL)  # it is still there, and nobody waited for it


def test_a_command_that_prints_nothing_or_does_not_exist_is_an_error(tmp_path: Path) -> None:
    assert "is empty" in reason({"command": "true"}, tmp_path)
    assert "cannot be run" in reason({"command": "no-such-program-here"}, tmp_path)
    problem = source({"command": "no-such-program-here"}, tmp_path).problem("new.ssh.password")
    assert problem is not None
    assert "no program 'no-such-program-here'" in str(problem)


def test_checking_up_front_runs_no_command(tmp_path: Path) -> None:
    asked = source({"command": ["touch", str(tmp_path / "ran")]})
    assert asked.problem("x") is None
    assert not (tmp_path / "ran").exists()


def test_everything_missing_is_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HB_TEST_A", raising=False)
    named = [("a", source({"env": "HB_TEST_A"})), ("b", source("literal")), ("c", source({"file": "nope"}, tmp_path))]
    assert [problem.where for problem in secrets.check(named)] == ["a", "c"]


class Ring:
    entries: dict[tuple[str, str], str] | None = None

    def get_password(self, service: str, username: str) -> str | None:
        if self.entries is None:
            raise keyring.errors.KeyringLocked("locked")
        return self.entries.get((service, username))


def test_the_keyring_is_asked_for_an_entry_of_our_service(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Ring()
    monkeypatch.setattr(keyring, "get_password", ring.get_password)
    ring.entries = {("hostbackup", "example.jp"): "ring"}
    assert source({"keyring": "example.jp"}).resolve("x").reveal() == "ring"
    assert "keyring set hostbackup other" in reason({"keyring": "other"})
    ring.entries = None
    assert "locked" in reason({"keyring": "example.jp"})


def test_a_missing_keyring_package_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    assert "hostbackup[keyring]" in reason({"keyring": "example.jp"})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "is empty"),
        (12345678, "found something else"),
        (["topsecret"], "found a list"),
        ({}, "exactly one"),
        ({"env": "A", "file": "b"}, "exactly one"),
        ({"evn": "topsecret"}, "did you mean 'env'"),
        ({"env": ""}, "not empty"),
        ({"env": "A=topsecret"}, "name of an environment variable"),
        ({"file": 7}, "must be text"),
        ({"file": "~nobody-of-that-name/x"}, "home is not known"),
        ({"command": []}, "not empty"),
        ({"command": "open 'quote"}, "cannot be split"),
        ({"command": ["a", 1]}, "a list of texts"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused_without_telling_its_value(value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        source(value)
    assert "topsecret" not in str(caught.value)
    assert "12345678" not in str(caught.value)


def test_redaction_hides_every_form_of_a_secret() -> None:
    secret = Secret('pa"ss/wörd')
    said = 'plain pa"ss/wörd quoted pa%22ss%2Fw%C3%B6rd json pa\\"ss/w\\u00f6rd base64 cGEic3Mvd8O2cmQ= end'
    assert redact(said, [secret]) == "plain ******** quoted ******** json ******** base64 ******** end"


@given(st.lists(st.text(min_size=4, max_size=12), min_size=1, max_size=4), st.text())
def test_no_secret_survives_redaction(values: list[str], text: str) -> None:
    values = [value for value in values if "*" not in value]
    told = redact(text.join(values), [Secret(value) for value in values])
    assert not [value for value in values if value in told]


@given(st.text(min_size=1).filter(lambda text: "\0" not in text))
def test_a_literal_comes_back_as_it_is(text: str) -> None:
    assert source(text).resolve("x").reveal() == text
