"""The adapters of an endpoint by their names: loaded, replaced and unloaded while calls are being answered.

A call holds the weights that it began with: what is replaced or unloaded stays in memory until its last call has ended.
Loading copies the files first, and hashes and loads the copy, so that the hash is that of what is loaded.
"""

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from babylon_rl.errors import ModelError, ServingError, TrainingError
from babylon_rl.serving.refusals import Refused, UnknownModel
from babylon_rl.training.policy import Policy
from babylon_rl.training.trainer import WEIGHTS_FILE, weights_digest

CONFIG_FILE = "adapter_config.json"


class Weights:
    """Loaded weights. `name`: under which they are asked for; `slot`: the policy's own name for them.

    `calls`: how many hold them. `weights_sha256`: of their file, None where they were not loaded from one here.
    """

    def __init__(self, name: str | None, slot: str | None, folder: str | None, weights_sha256: str | None) -> None:
        self.name, self.slot, self.folder, self.weights_sha256 = name, slot, folder, weights_sha256
        self.calls, self.retired = 0, False


class Adapters:
    """What may be asked for, by name. Methods that change the policy's weights are called between its steps only."""

    def __init__(self, policy: Policy, base_name: str) -> None:
        self.policy, self.base_name = policy, base_name
        self.base = Weights(None, None, None, None)
        self._by_name = {name: Weights(name, name, None, None) for name in policy.adapters}
        self._retired: list[Weights] = []
        self._lock = threading.Lock()
        self._loads = 0

    def names(self) -> list[str]:
        """Names of the loaded adapters, in the order of their loading."""
        with self._lock:
            return list(self._by_name)

    def loaded(self) -> list[Weights]:
        """The loaded adapters, in the order of their loading."""
        with self._lock:
            return list(self._by_name.values())

    def hold(self, name: str | None) -> Weights:
        """The weights that the name stands for now, None the base model's. They stay until they are let go."""
        with self._lock:
            found = self.base if name is None else self._by_name.get(name)
            if found is None:
                raise UnknownModel(
                    f"No checkpoint {name!r} is loaded; loaded are: {', '.join(self._by_name) or 'none'}.", "model"
                )
            found.calls += 1
            return found

    def let_go(self, weights: Weights) -> None:
        """A call has ended."""
        with self._lock:
            weights.calls -= 1

    # --- changes, between steps ---

    def load(self, name: str, folder: Path, digest: str, told: str, in_place: bool) -> Weights:
        """Load the adapter of a private folder, whose weights have the digest; `told`: where it was copied from.

        Loaded again with the same weights it is left alone. Refused where the name has other weights and is not to be
        replaced, ModelError where the files are not a whole adapter of this model; all is as before then.
        """
        with self._lock:
            before = self._by_name.get(name)
        if before is not None and before.weights_sha256 == digest:
            return before
        if before is not None and not in_place:
            raise Refused(
                f"The lora adapter '{name}' has already been loaded with other weights. If you want to load the "
                "adapter in place, set 'load_inplace' to True.",
                "lora_name",
            )
        self._loads += 1
        made = Weights(name, f"loaded_{self._loads}", told, digest)
        assert made.slot is not None
        self.policy.add_adapter(folder, made.slot)
        try:
            check_whole(self.policy, made.slot, folder)
        except ModelError:
            self.policy.remove_adapter(made.slot)
            raise
        with self._lock:
            self._by_name[name] = made
            self._retire(before)
        return made

    def unload(self, name: str) -> None:
        """Calls find it no more; those that hold it end with it."""
        with self._lock:
            if name not in self._by_name:
                raise UnknownModel(f"The lora adapter '{name}' cannot be found.", "lora_name")
            self._retire(self._by_name.pop(name))

    def _retire(self, weights: Weights | None) -> None:
        if weights is not None:
            weights.retired = True
            self._retired.append(weights)

    def free(self) -> list[str | None]:
        """Take weights that no call can ask for or holds out of memory; their slots."""
        with self._lock:
            ended = [weights for weights in self._retired if not weights.calls]
            self._retired = [weights for weights in self._retired if weights.calls]
        for weights in ended:
            assert weights.slot is not None
            self.policy.remove_adapter(weights.slot)
        return [weights.slot for weights in ended]


@contextmanager
def private_copy(folder: Path) -> Iterator[tuple[Path, str]]:
    """A copy of an adapter's files that nobody else writes to, and the digest of its weights; removed at the end."""
    with tempfile.TemporaryDirectory(prefix="babylon_rl-adapter-") as name:
        try:
            for file in (CONFIG_FILE, WEIGHTS_FILE):
                shutil.copyfile(folder / file, Path(name) / file)
            digest = weights_digest(Path(name))
        except (OSError, TrainingError) as error:
            raise UnknownAdapter(f"The adapter in {folder} cannot be read: {error}.", "lora_path") from None
        yield Path(name), digest


class UnknownAdapter(Refused):
    """No adapter is where it was said to be."""

    status, code = 404, "adapter_not_found"


def check_whole(policy: Policy, slot: str, folder: Path) -> None:
    """ModelError unless the loaded weights are all those of the file and no others, and finite."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    given = load_file(folder / WEIGHTS_FILE)
    held = get_peft_model_state_dict(policy.model, adapter_name=slot)
    if given.keys() != held.keys():
        apart = sorted(given.keys() ^ held.keys())
        raise ModelError(
            f"The adapter is not one of this base model, or not whole: {len(apart)} of its tensors have no match, the "
            f"first is {apart[0]}."
        )
    for name, tensor in given.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"The adapter's weights are not all finite: {name}.")
        if not torch.equal(tensor.to(held[name]), held[name]):
            raise ModelError(f"The adapter's weights were not loaded as they are in its file: {name}.")


def loading_error(error: Exception) -> ServingError:
    """What a failed load tells its caller."""
    return error if isinstance(error, Refused) else Refused(str(error), "lora_path")
