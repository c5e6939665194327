"""Loading, replacing and unloading adapters as a caller asks for it, between the steps of the calls being answered."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from babylon_rl.errors import BabylonError
from babylon_rl.serving.adapters import Adapters, Weights, loading_error, private_copy
from babylon_rl.serving.batching import Engine
from babylon_rl.serving.refusals import Failed, Refused

Made = TypeVar("Made")


async def load_adapter(engine: Engine, adapters: Adapters, body: dict[str, Any]) -> dict[str, Any]:
    """Load an adapter, vLLM's `load_lora_adapter`: `lora_name`, `lora_path` (a folder here), `load_inplace`.

    Unlike vLLM's, asking again for the same weights under the same name is no error, so that it may be repeated.
    """
    name, folder = body.get("lora_name"), body.get("lora_path")
    if not (isinstance(name, str) and name and isinstance(folder, str) and folder):
        raise Refused("lora_name and lora_path are required.")
    if name == adapters.base_name:
        raise Refused(f"{name!r} is the base model's own name.", "lora_name")
    in_place = bool(body.get("load_inplace"))

    def change() -> Weights:
        # The copy is made outside of the engine's thread, which only loads it.
        with private_copy(Path(folder)) as (copy, digest):
            return _between_steps(engine, lambda: adapters.load(name, copy, digest, folder, in_place))

    loaded = await asyncio.to_thread(change)
    return {
        "message": f"Success: LoRA adapter '{name}' added successfully.",
        "weights_sha256": loaded.weights_sha256,
        "loaded": adapters.names(),
    }


async def unload_adapter(engine: Engine, adapters: Adapters, body: dict[str, Any]) -> dict[str, Any]:
    """Unload an adapter, vLLM's `unload_lora_adapter`: `lora_name`. Calls that have begun end with it."""
    name = body.get("lora_name")
    if not (isinstance(name, str) and name):
        raise Refused("lora_name is required.")
    await asyncio.to_thread(_between_steps, engine, lambda: adapters.unload(name))
    return {"message": f"Success: LoRA adapter '{name}' removed successfully.", "loaded": adapters.names()}


def _between_steps(engine: Engine, change: Callable[[], Made]) -> Made:
    """What the change gives, made in the engine's thread; its error is raised here."""
    from concurrent.futures import Future

    done: Future[Made] = Future()

    def run() -> None:
        try:
            done.set_result(change())
        except BabylonError as error:
            done.set_exception(loading_error(error))
        except Exception as error:
            done.set_exception(Failed(f"The adapters could not be changed: {type(error).__name__}: {error}"))

    engine.between_steps(run)
    return done.result()
