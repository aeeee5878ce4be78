"""Shared by all tests: few threads, a browser, and small models that still
have everything an attack may disturb."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import nn

torch.set_num_threads(1)  # the models here are too small to share, and other processes may want the other cores


# The same examples on each run: what fails, fails for whoever changed something. "default" draws anew.
settings.register_profile("pinned", derandomize=True, deadline=None, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "pinned"))

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, CHROMIUM)), playwright.chromium.executable_path)
        if not Path(found).is_file():
            pytest.skip(
                "no Chromium found: install one with your package manager (Debian: apt-get install chromium) "
                "or with `.venv/bin/playwright install chromium`"
            )
        root = hasattr(os, "geteuid") and os.geteuid() == 0  # Chromium's sandbox refuses to run as root
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"] if root else [])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Trained models and records of one file of tests, in folders of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HPAT_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("HPAT_RECORDS", str(tmp_path_factory.mktemp("records")))
        yield


@pytest.fixture
def model() -> nn.Module:
    """A small classifier with batch norm, dropout, a frozen layer and mixed modes; images [B, 3, 16, 16]."""
    torch.manual_seed(0)
    built = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(8 * 8 * 8, 3),
    )
    built(torch.rand(32, 3, 16, 16))  # statistics that are not the initial ones
    return built.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([0, 1, 2, 0, 1, 2])
