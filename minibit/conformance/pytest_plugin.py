"""``pytest --minibit-port MODULE``: every vector that a Python module offers, as a test of its own.

Pytest loads this file where minibit is installed; without the option it does nothing. In a source
tree: ``pytest -p minibit.conformance.pytest_plugin --minibit-port MODULE``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from minibit.conformance.cases import Case

__all__ = ["pytest_addoption", "pytest_collection_modifyitems"]


class PortCase(pytest.Item):
    """One case against the module, in this process."""

    def __init__(self, case: Case, module: Any, **node: Any) -> None:
        super().__init__(**node)
        self.case, self.module = case, module

    def runtest(self) -> None:
        """Pass, skip what is not offered, or fail with where the answer differs."""
        from minibit.conformance.conforming import conform

        (result,) = conform(self.module, [self.case]).results
        if result.verdict == "not offered":
            pytest.skip(f"{self.case.call} is not offered")
        if result.verdict != "conforms":
            hints = [f"{flag}: {note['goes_wrong']}" for flag, note in result.hints()]
            pytest.fail("\n".join([f"{self.case.call}: {result.detail}", *hints]), pytrace=False)

    def reportinfo(self) -> tuple[Any, None, str]:
        """Name the case in reports."""
        return self.path, None, self.case.id


class PortCases(pytest.Collector):
    """All cases of the vectors."""

    def collect(self) -> Iterator[PortCase]:
        """Make an item of each case."""
        from minibit.conformance.conforming import all_cases
        from minibit.conformance.serving import load_module

        name = self.config.getoption("--minibit-port")
        try:
            module = load_module(name)
        except ModuleNotFoundError as error:
            raise pytest.UsageError(f"--minibit-port {name}: {error}") from error
        for case in all_cases():
            yield PortCase.from_parent(self, name=case.id, case=case, module=module)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("minibit").addoption(
        "--minibit-port",
        metavar="MODULE",
        help="run minibit's vectors against a Python module, by its name or its .py file",
    )


def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Put the cases behind the tests that were collected."""
    if config.getoption("--minibit-port"):
        items += PortCases.from_parent(session, name="minibit").collect()
