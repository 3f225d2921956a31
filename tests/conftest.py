"""Fixtures that several test folders share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered data is kept for the session, not in the user's cache; programs that tests start inherit the variable."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["MOSS_TRAIN_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets (`../shared/data`, or MOSS_TRAIN_REAL_DATA); the test is skipped where it is absent."""
    folder = Path(os.environ.get("MOSS_TRAIN_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "moss-003-sft-sample" / "train.jsonl").is_file():
        pytest.skip(f"real data not found at {folder}; set MOSS_TRAIN_REAL_DATA to its folder")
    return folder


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out `slow` unless asked for with -m, and skip `gpu` where no CUDA device is present."""
    import torch

    for item in items:
        if "slow" in item.keywords and "slow" not in (config.getoption("-m") or ""):
            item.add_marker(pytest.mark.skip(reason="long campaign; run with -m slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
