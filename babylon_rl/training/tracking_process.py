"""The process that imports wandb and tells it of one update, read as JSON from the standard input (`tracking.story`).

Online where WANDB_API_KEY is set, else into files. Writes `logging` before it logs, and at the end one line of JSON:
whether it was logged, how, and what went wrong. It imports nothing of this package, so that it starts fast.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, Literal, NoReturn

# What of a checkpoint's folder is of this machine alone: the manifest names its folders.
STAYS = "manifest.json"


def main() -> None:
    """Tell of the update; the exit leaves no thread of wandb's to wait for."""
    said = json.load(sys.stdin)
    sys.modules["pandas"] = None  # type: ignore[assignment]  # wandb imports it for a table of lists too: 0.3 s
    import wandb

    if not hasattr(wandb, "init"):
        raise ImportError("the wandb library is not installed (`pip install wandb`); a folder of that name is there")
    online = "WANDB_API_KEY" in os.environ
    try:
        run = start(said, "online" if online else "offline")
    except Exception as error:  # wandb has many errors for a service that is not reached
        if not online:
            raise
        # wandb's own process now holds the run's id, so that this one cannot go on without the service.
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        end({"logged": False, "mode": "online", "wrong": first[0]})
    print("logging", flush=True)
    log(run, said)
    run.finish()
    end({"logged": True, "mode": "online" if online else "offline", "wrong": None})


def end(told: dict[str, Any]) -> NoReturn:
    """Write how it went and leave at once."""
    print(json.dumps(told), flush=True)
    os._exit(0)


def start(said: dict[str, Any], mode: Literal["online", "offline"]) -> Any:
    """`wandb.init`, telling nothing of the machine, its packages, its console or the repository."""
    import wandb

    init_timeout, finish_timeout = said["timeouts"]
    return wandb.init(
        project=said["project"],
        entity=said["entity"],
        id=said["id"],
        name=said["name"],
        resume="allow",
        mode=mode,
        config=said["config"],
        allow_val_change=True,
        settings=wandb.Settings(
            init_timeout=init_timeout,
            finish_timeout=finish_timeout,
            silent=True,
            symlink=False,
            console="off",
            host="-",
            program="babylon_rl",
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        ),
    )


def log(run: Any, said: dict[str, Any]) -> None:
    """One step: the numbers and the tables; then the summary and the checkpoint's files, which are not copied."""
    import wandb

    tables = {
        name: wandb.Table(columns=table["columns"], data=table["data"], allow_mixed_types=True)
        for name, table in said["tables"].items()
        if table["data"]
    }
    run.log({**said["metrics"], **tables}, step=said["step"])
    run.summary.update(said["summary"])
    if said["artifact"] is not None:
        artifact = wandb.Artifact(said["id"], type="lora", metadata=said["summary"])
        for path in sorted(Path(said["artifact"]).rglob("*")):
            if path.is_file() and path.name != STAYS:
                name = path.relative_to(said["artifact"]).as_posix()
                artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
        run.log_artifact(artifact, aliases=["latest", f"step{said['step']}"])


if __name__ == "__main__":
    main()
