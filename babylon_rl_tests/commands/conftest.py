"""The command line in this process: a new one costs a second."""

import subprocess
from collections.abc import Callable

import pytest

from babylon_rl import cli
from babylon_rl.console import console
from babylon_rl.settings import get_settings


@pytest.fixture
def run(monkeypatch, capsys, tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Function that runs a command as its process would; no embedded server is there."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            patch.setattr("sys.argv", ["babylon-rl", *arguments])
            patch.setattr(console, "width", 200)
            home = {"BABYLON_RL_HOME": str(tmp_path), "BABYLON_RL_DATABASE_HOME": str(tmp_path / "none")}
            for name, value in {**home, **environment}.items():
                patch.setenv(name, value)
            get_settings.cache_clear()
            capsys.readouterr()
            with pytest.raises(SystemExit) as ended:
                cli.main()
        get_settings.cache_clear()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, ended.value.code or 0, said.out, said.err)

    return run
