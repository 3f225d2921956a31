"""The family that tests of lineage look at; those that change it take a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.families import Family, make


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Not to be changed."""
    return make(tmp_path_factory.mktemp("family") / "family")


@pytest.fixture
def own(family: Family, tmp_path: Path) -> Family:
    """A copy, to be changed."""
    shutil.copytree(family.root, tmp_path / "family")
    return family.at(tmp_path / "family")
