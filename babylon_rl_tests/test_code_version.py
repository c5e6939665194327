"""The version of the running code, read from the files of a checkout that git made."""

import subprocess
from pathlib import Path

import pytest

from babylon_rl.code_version import version_of


def git(root: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *who, *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path) -> Path:
    root = tmp_path / "checkout"
    (root / "package" / "inner").mkdir(parents=True)
    for name in ("package/a.py", "package/inner/b.py", "package/c with a long name of its own.py", "other.txt"):
        (root / name).write_text(f"# {name}\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "one")
    return root


def test_a_clean_checkout_gives_its_commit_however_git_keeps_the_refs(checkout):
    expected = f"1.0 {git(checkout, 'rev-parse', 'HEAD')[:12]}"
    assert version_of(checkout / "package", "1.0") == expected
    git(checkout, "pack-refs", "--all")
    assert version_of(checkout / "package", "1.0") == expected
    git(checkout, "checkout", "-q", "--detach")
    assert version_of(checkout / "package", "1.0") == expected
    git(checkout, "worktree", "add", "-q", "-b", "beside", "../beside")
    assert version_of(checkout.parent / "beside" / "package", "1.0") == expected


def test_a_changed_or_missing_file_of_the_package_is_told_and_one_elsewhere_or_a_new_time_is_not(checkout):
    clean = version_of(checkout / "package", "1.0")
    file = checkout / "package" / "inner" / "b.py"
    text = file.read_text()
    file.touch()
    (checkout / "other.txt").write_text("another")
    assert version_of(checkout / "package", "1.0") == clean
    file.write_text(text.replace("b", "B"))
    assert version_of(checkout / "package", "1.0") == f"{clean}+dirty"
    file.write_text(text)
    assert version_of(checkout / "package", "1.0") == clean
    file.unlink()
    assert version_of(checkout / "package", "1.0") == f"{clean}+dirty"


def test_outside_a_checkout_or_installed_into_anothers_it_is_the_bare_version(checkout, tmp_path):
    assert version_of(tmp_path / "package", "1.0") == "1.0"
    (checkout / ".venv" / "package").mkdir(parents=True)
    assert version_of(checkout / ".venv" / "package", "1.0") == "1.0"
    (checkout / ".git" / "index").write_bytes(b"DIRC\0\0\0\x09\0\0\0\0")
    assert version_of(checkout / "package", "1.0") == "1.0"
