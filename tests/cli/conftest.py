"""The command line against a fake gateway on a real port."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.main import main
from tests.cli.fake_gateway import FakeGateway, Served


@dataclass
class Ran:
    """What a command left."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the caller's settings and .env file away."""
    for name in list(os.environ):
        if name.startswith("LATENTEVOLVE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run the command line in this process; stdout and stderr are no terminals."""

    def call(*arguments: str) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = capsys.readouterr()
        return Ran(ended.value.code or 0, out, err)

    return call


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGateway]:
    """A fake gateway that the settings point at."""
    fake = FakeGateway()
    served = Served(fake)
    monkeypatch.setenv("LATENTEVOLVE_GATEWAY_URL", fake.url)
    yield fake
    served.close()
