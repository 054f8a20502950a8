"""Fixtures and collection rules shared by all tests."""
# SPDX-License-Identifier: MIT

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `cuda` where there is no GPU, and say so."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, torch.cuda.is_available() is False")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)


@pytest.fixture
def rng() -> torch.Generator:
    """A generator with a fixed seed, fresh for every test, so that a failure repeats."""
    return torch.Generator().manual_seed(1787)
