"""What the tests of the command line share: a command in this process, its answer, its refusal."""

import json

import pytest

pytest.importorskip("typer")

from typer.testing import CliRunner

from minibit.cli.app import app


def call(*words: object, typed: str = ""):
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(word) for word in words], input=typed)


def answer(*words: object, typed: str = "", status: int = 0) -> dict:
    """Run a command with --json and return the object of its last line."""
    done = call(*words, "--json", typed=typed)
    assert done.exit_code == status, done.output
    return json.loads(done.stdout.splitlines()[-1])


def refused(*words: object, status: int = 2) -> str:
    """Run a command that must fail; return its one sentence."""
    done = call(*words)
    assert done.exit_code == status, done.output
    assert "Traceback" not in done.output
    assert isinstance(done.exception, SystemExit | None), done.exception
    return done.stderr
