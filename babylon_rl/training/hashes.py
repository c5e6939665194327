"""Hashes of what a checkpoint was trained on: the base model's weights, its tokenizer, the adapter itself.

Files are streamed. The hash of a large base model is kept beside the checkpoints, and computed again once one of its
files has another size or time.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
NO_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "training_args.bin")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def base_digest(folder: Path, cache: Path | None = None) -> str | None:
    """SHA-256 over names and hashes of a base model's weights files; None where the folder has none.

    Its config.json is no part of it: the transformers library writes its own version there. `cache`: folder where
    hashes are kept; an entry counts as long as size, time and inode of each file are what they were.
    """
    files = sorted({path for kind in WEIGHTS for path in folder.glob(kind) if path.name not in NO_WEIGHTS})
    if not files:
        return None
    signs = [[path.name, s.st_size, s.st_mtime_ns, s.st_ino] for path in files for s in (path.stat(),)]
    kept = cache and cache / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]}.json"
    if kept and (digest := _kept(kept, signs)):
        return digest
    digest = _over(files)
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f".{kept.name}.{os.getpid()}")
        partial.write_text(json.dumps({"folder": str(folder), "files": signs, "sha256": digest}))
        partial.rename(kept)
    return digest


def tokenizer_digest(folder: Path) -> str | None:
    """SHA-256 over names and hashes of tokenizer and chat template; None where the folder has neither."""
    files = [folder / name for name in TOKENIZER if (folder / name).is_file()]
    return _over(files) if files else None


def _over(files: Iterable[Path]) -> str:
    lines = (f"{path.name} {file_digest(path)}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _kept(path: Path, signs: list[list[object]]) -> str | None:
    try:
        found = json.loads(path.read_text())
        return str(found["sha256"]) if found["files"] == signs else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
