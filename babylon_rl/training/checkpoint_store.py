"""Where checkpoints are kept: a folder, or any URL that fsspec knows; and how their weights come back from there.

A checkpoint is a folder of files with a manifest that names each with its hash. The trainer writes it to a local folder
and renames it; for a URL its files go under a temporary name, are read back, and are moved, the manifest last: a
checkpoint without its manifest does not exist. What was fetched from a URL stays in the home folder's cache.
"""

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from babylon_rl.errors import SettingsError, TrainingError
from babylon_rl.settings import Settings
from babylon_rl.training.hashes import base_digest, file_digest, tokenizer_digest
from babylon_rl.training.runs import Checkpoint
from babylon_rl.training.trainer import (
    MANIFEST_FILE,
    WEIGHTS_FILE,
    TrainerRequest,
    TrainerResult,
    finished,
    weights_digest,
)

TRASH = ".trash"


def is_remote(place: str) -> bool:
    """Whether the text is a URL that is not of a local file."""
    return "://" in place and not place.startswith("file://")


def local_path(place: str) -> Path:
    """The folder that a path or a file:// URL names."""
    return Path(place.removeprefix("file://")).expanduser().resolve()


def store_root(settings: Settings) -> str:
    """The folder or URL of the store. SettingsError where its protocol is unknown or its package is not installed."""
    place = settings.checkpoint_store.strip().rstrip("/")
    if not place:
        return str(Path(settings.home) / "checkpoints")
    if not is_remote(place):
        return str(local_path(place))
    _open(place)
    return place


def working_folder(settings: Settings, checkpoint_id: str) -> Path:
    """Where the trainer writes a checkpoint: its place in the store, or in the cache of a store that is a URL."""
    root = store_root(settings)
    return cached(settings.home, checkpoint_id) if is_remote(root) else Path(root) / checkpoint_id


def booked_folder(connection: psycopg.Connection, checkpoint_id: str) -> Path | None:
    """The folder of a checkpoint that was made before, which stays its place where the setting has changed since."""
    row = connection.execute(
        "SELECT path FROM babylon_rl.checkpoints WHERE checkpoint_id = %s AND state = 'ready' AND path IS NOT NULL",
        (checkpoint_id,),
    ).fetchone()
    return local_path(row[0]) if row is not None and not is_remote(row[0]) and exists(row[0]) else None


def cached(home: Path, checkpoint_id: str) -> Path:
    """The local folder of a checkpoint whose store is a URL."""
    return Path(home) / "cache" / "checkpoints" / checkpoint_id


# --- what the trainer made -------------------------------------------------------------------------


def take_up(settings: Settings, request: TrainerRequest) -> TrainerResult | None:
    """The result of the same request from an earlier attempt, which may have been another machine's."""
    if Path(request.folder) == cached(settings.home, request.checkpoint_id):
        place = f"{store_root(settings)}/{request.checkpoint_id}"
        if not (Path(request.folder) / MANIFEST_FILE).is_file() and exists(place):
            _download(place, Path(request.folder))
    return finished(request)


def keep(settings: Settings, request: TrainerRequest, result: TrainerResult) -> TrainerResult:
    """The result as it is booked: with the hashes of what it was trained on, and its files in the store.

    A second call changes nothing. Weights that a service keeps stay there.
    """
    if result.folder is None or result.weights_sha256 is None:
        return result
    root = store_root(settings)
    folder = Path(request.folder)
    if not is_remote(result.folder) and local_path(result.folder) != folder.resolve():
        _copy(local_path(result.folder), folder)  # the backend has a layout of its own
    # One that was booked in a folder before the setting became a URL stays there.
    uploads = is_remote(root) and folder == cached(settings.home, request.checkpoint_id)
    place = f"{root}/{request.checkpoint_id}" if uploads else str(folder)
    result = hashed(result, Path(request.base_folder), settings.home)
    result = msgspec.structs.replace(result, folder=place)
    manifest = {
        "request": msgspec.to_builtins(request),
        "result": msgspec.to_builtins(result),
        "files": {
            name: {"sha256": file_digest(folder / name), "bytes": (folder / name).stat().st_size}
            for name in sorted(_files(folder))
        },
    }
    text = json.dumps(manifest, indent=1, sort_keys=True)
    try:
        if uploads and not _has(place, result.weights_sha256):
            _upload(folder, place, manifest["files"], text)
        written = folder / MANIFEST_FILE
        if not written.is_file() or written.read_text() != text:
            partial = folder / f".{MANIFEST_FILE}.{os.getpid()}"
            partial.write_text(text)
            partial.rename(written)
    except Exception as error:  # each file system has errors of its own
        raise TrainingError(
            f"The checkpoint could not be kept in {place} ({error}). It lies complete in {folder}; see that the store "
            "can be written to, then run the command again: nothing is trained twice."
        ) from error
    return result


def _copy(source: Path, folder: Path) -> None:
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        shutil.copytree(source, partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as error:
        raise TrainingError(
            f"The checkpoint could not be copied from {source} to {folder} ({error}). Free some space, then run the "
            "command again."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def hashed(result: TrainerResult, base_folder: Path, home: Path) -> TrainerResult:
    """The result with the hashes of base model and tokenizer, where its backend named none."""
    return msgspec.structs.replace(
        result,
        base_sha256=result.base_sha256 or base_digest(base_folder, digests(home)),
        tokenizer_sha256=result.tokenizer_sha256 or tokenizer_digest(base_folder),
    )


def digests(home: Path) -> Path:
    """Folder where hashes of base models are kept."""
    return Path(home) / "cache" / "digests"


def check_base(parent: Checkpoint, base_folder: Path, home: Path) -> None:
    """TrainingError where the base model is another than the one that the parent was trained on, under its name."""
    if parent.base_sha256 is None:
        return
    found = base_digest(base_folder, digests(home))
    if found != parent.base_sha256:
        raise TrainingError(
            f"The weights of the base model in {base_folder} have the hash {(found or 'none')[:12]}, and "
            f"{parent.checkpoint_id} was trained on {parent.base_sha256[:12]}: it is another model under the name "
            f"{parent.base_model}. Put the old weights back, or begin another run under another name."
        )


# --- reading ---------------------------------------------------------------------------------------


def local_folder(checkpoint: Checkpoint, home: Path) -> Path:
    """Local folder of the checkpoint's weights, fetched once from a URL, with the booked hash.

    TrainingError where they were deleted, altered, are not to be had, or are kept by a service.
    """
    refuse_deleted(checkpoint)
    if checkpoint.path is None:
        raise TrainingError(
            f"{checkpoint.checkpoint_id} has no weights here: "
            + (
                f"a service keeps them and answers at {checkpoint.inference_url} as {checkpoint.inference_name}."
                if checkpoint.inference_name
                else "it is the base model itself."
            )
        )
    if not is_remote(checkpoint.path):
        return _checked(local_path(checkpoint.path), checkpoint)
    folder = cached(home, checkpoint.checkpoint_id)
    if (folder / MANIFEST_FILE).is_file() and weights_digest(folder) == checkpoint.weights_sha256:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    if not exists(checkpoint.path):
        raise TrainingError(
            f"The checkpoint {checkpoint.checkpoint_id} is not in {checkpoint.path}, or has no manifest there. Put it "
            f"back, or train it again: {again(checkpoint)}"
        )
    _download(checkpoint.path, folder)
    return _checked(folder, checkpoint)


def refuse_deleted(checkpoint: Checkpoint) -> None:
    """TrainingError where the checkpoint's weights were deleted on purpose."""
    if checkpoint.state == "deleted":
        raise TrainingError(
            f"The weights of {checkpoint.checkpoint_id} were deleted. Name another checkpoint, which `babylon-rl "
            f"checkpoints` lists, or train again from its snapshot: {again(checkpoint)}"
        )


def again(checkpoint: Checkpoint) -> str:
    """How a checkpoint is made once more."""
    return (
        f"materialize trained_checkpoints of {checkpoint.last_window}, which makes it from snapshot "
        f"{(checkpoint.snapshot_id or '')[:12]} while the groups of its windows are what they were."
    )


def stored_digest(place: str) -> str:
    """SHA-256 of the weights at a folder or URL, read where they are; TrainingError where there are none."""
    if not is_remote(place):
        return weights_digest(local_path(place))
    fs, root = _open(place)
    try:
        return _remote_digest(fs, f"{root}/{WEIGHTS_FILE}")
    except FileNotFoundError:
        raise TrainingError(f"The checkpoint in {place} has no {WEIGHTS_FILE}; train it again.") from None


def exists(place: str) -> bool:
    """Whether a checkpoint is there, complete."""
    if not is_remote(place):
        return (local_path(place) / WEIGHTS_FILE).is_file()
    fs, root = _open(place)
    return bool(fs.exists(f"{root}/{MANIFEST_FILE}"))


def stored_bytes(place: str) -> int | None:
    """How much room a checkpoint takes; 0 where it is gone, None where its store does not answer."""
    try:
        if not is_remote(place):
            folder = local_path(place)
            return sum((folder / name).stat().st_size for name in _files(folder, manifest=True))
        fs, root = _open(place)
        return int(fs.du(root)) if fs.exists(root) else 0
    except (OSError, SettingsError):
        return None


def delete(place: str) -> None:
    """Take a checkpoint away so that at no moment half of it is there; nothing where it is gone.

    A folder is renamed into the trash beside it first; of a URL the manifest goes first.
    """
    if is_remote(place):
        fs, root = _open(place)
        if fs.exists(f"{root}/{MANIFEST_FILE}"):
            fs.rm_file(f"{root}/{MANIFEST_FILE}")
        if fs.exists(root):
            fs.rm(root, recursive=True)
        return
    folder = local_path(place)
    trash = folder.parent / TRASH
    if folder.is_dir():
        trash.mkdir(exist_ok=True)
        folder.rename(trash / f"{folder.name}.{uuid.uuid4().hex[:8]}")
    for thrown in trash.glob("*"):
        shutil.rmtree(thrown)


def _checked(folder: Path, checkpoint: Checkpoint) -> Path:
    found = weights_digest(folder)
    if checkpoint.weights_sha256 is not None and found != checkpoint.weights_sha256:
        raise TrainingError(
            f"The weights in {folder} are not those of {checkpoint.checkpoint_id}: they have the hash {found[:12]}, "
            f"and {checkpoint.weights_sha256[:12]} is booked. Put the old ones back; or remove the folder and train it "
            f"again: {again(checkpoint)}"
        )
    return folder


def _files(folder: Path, manifest: bool = False) -> list[str]:
    """Names of a checkpoint's files, below its folder."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in found if manifest or MANIFEST_FILE not in name]


# --- file systems ----------------------------------------------------------------------------------


def _open(place: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it."""
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    protocol = place.partition("://")[0]
    try:
        return url_to_fs(place)
    except ImportError as error:
        wanted = known_implementations.get(protocol, {}).get("err", str(error))
        raise SettingsError(
            f"The checkpoint store {protocol}:// needs a package that is not installed: {wanted}. Install it into this "
            "environment, or set BABYLON_RL_CHECKPOINT_STORE to a folder."
        ) from None
    except ValueError as error:
        raise SettingsError(
            f"BABYLON_RL_CHECKPOINT_STORE begins with {protocol}://, which fsspec does not know ({error}). Name a "
            "folder, or a URL of a file system whose fsspec package is installed, such as s3:// with s3fs."
        ) from None


def _remote_digest(fs: Any, path: str) -> str:
    digest = hashlib.sha256()
    with fs.open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _has(place: str, weights_sha256: str) -> bool:
    """Whether the store has the checkpoint with these weights."""
    fs, root = _open(place)
    try:
        manifest = json.loads(fs.cat_file(f"{root}/{MANIFEST_FILE}"))
    except FileNotFoundError:
        return False
    return manifest["result"]["weights_sha256"] == weights_sha256


def _upload(folder: Path, place: str, files: dict[str, dict[str, Any]], manifest: str) -> None:
    """Copy a checkpoint to its URL: under a temporary name, read back, moved file by file, the manifest last."""
    fs, root = _open(place)
    parent, _, name = root.rpartition("/")
    partial = f"{parent}/.{name}.{uuid.uuid4().hex[:8]}"
    try:
        fs.makedirs(partial, exist_ok=True)
        for file, expected in files.items():
            fs.makedirs(f"{partial}/{file}".rpartition("/")[0], exist_ok=True)
            fs.put_file(str(folder / file), f"{partial}/{file}")
            if _remote_digest(fs, f"{partial}/{file}") != expected["sha256"]:
                raise OSError(f"{file} is not what was sent when it is read back")
        fs.pipe_file(f"{partial}/{MANIFEST_FILE}", manifest.encode())
        if fs.exists(root):  # what an interrupted upload left, or weights that are no longer booked
            delete(place)
        fs.makedirs(root, exist_ok=True)
        for file in (*files, MANIFEST_FILE):
            fs.makedirs(f"{root}/{file}".rpartition("/")[0], exist_ok=True)
            fs.mv(f"{partial}/{file}", f"{root}/{file}")
    finally:
        if fs.exists(partial):
            fs.rm(partial, recursive=True)


def _download(place: str, folder: Path) -> None:
    """Copy a checkpoint from its URL to a folder, which appears when all of it is there and has its hashes."""
    fs, root = _open(place)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        manifest = json.loads(fs.cat_file(f"{root}/{MANIFEST_FILE}"))
        for name, expected in manifest["files"].items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(f"{root}/{name}", str(partial / name))
            if file_digest(partial / name) != expected["sha256"]:
                raise TrainingError(
                    f"{name} in {place} is damaged: it has another hash than its manifest says. Remove the folder "
                    "there and train the checkpoint again."
                )
        (partial / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1, sort_keys=True))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except TrainingError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise TrainingError(
            f"The checkpoint in {place} could not be fetched to {folder} ({error}). See that the store answers and "
            "that there is room, then run the command again."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
