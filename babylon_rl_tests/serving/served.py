"""A served tiny model for tests: checkpoints with canaries, and gateway, shipper and deployer as real processes."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec

from babylon_rl.database.connect import Database
from babylon_rl.serving.deployer import Pace
from babylon_rl.serving.supervision import Options, Serving
from babylon_rl.settings import Settings
from babylon_rl.training.canaries import Canaries, canary_logprobs, save_canaries
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.runs import Checkpoint, TrainingRun, save_checkpoint, start_run
from babylon_rl.training.trainer import weights_digest

RUN = "run"
ASK = {
    "model": "babylon",
    "messages": [{"role": "system", "content": "You trade on news."}, {"role": "user", "content": "BUY or SELL?"}],
    "structured_outputs": {"choice": ["BUY ACME", "SELL ACME", "HOLD ACME"]},
}


def make_adapter(base: Path, folder: Path, seed: int) -> Path:
    """An adapter of drawn weights over the base model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


def book_checkpoints(database: Database, base: Path, folder: Path, steps: int) -> list[str]:
    """A training run with checkpoints of drawn weights and their canaries; the ids, step 0 the first."""
    from babylon_rl.training.policy import Policy, use_threads

    use_threads(1)
    policy = Policy(base)
    with database.connect() as connection:
        start_run(
            connection,
            TrainingRun(
                training_run=RUN,
                base_model="tiny",
                seed=0,
                recipe=Recipe(),
                schedule={},
                first_window="2026-01-01T00:00",
                last_window=None,
                state="running",
            ),
        )
        names = [f"{RUN}@0"]
        _keep_canaries(connection, policy, names[0], None)
        for step in range(1, steps + 1):
            made = make_adapter(base, folder / f"{RUN}@{step}", step)
            checkpoint = Checkpoint(
                checkpoint_id=f"{RUN}@{step}",
                training_run=RUN,
                parent_id=names[-1],
                snapshot_id=None,
                base_model="tiny",
                step=step,
                path=str(made),
                weights_sha256=weights_digest(made),
                last_window="2026-01-01T00:00",
                metrics={},
                state="ready",
            )
            save_checkpoint(connection, checkpoint)
            policy.add_adapter(made, checkpoint.checkpoint_id)
            _keep_canaries(connection, policy, checkpoint.checkpoint_id, checkpoint.weights_sha256)
            names.append(checkpoint.checkpoint_id)
    return names


def _keep_canaries(connection, policy, checkpoint_id: str, weights_sha256: str | None) -> None:
    adapter = checkpoint_id if weights_sha256 else None
    save_canaries(
        connection,
        Canaries(
            checkpoint_id=checkpoint_id,
            precision="float32",
            prompts=canary_logprobs(policy, adapter),
            made_by="trainer",
            weights_sha256=weights_sha256,
        ),
    )


class Served(msgspec.Struct):
    """What serves, kept going by a thread, and what it said."""

    serving: Serving
    database: Database
    said: list[str]
    key: str

    def promote(self, checkpoint_id: str) -> float:
        """Book the promotion; the moment of its commit."""
        with self.database.connect() as connection:
            connection.execute(
                """INSERT INTO babylon_rl.promotions (training_run, from_checkpoint, to_checkpoint, who, why, evidence)
                   SELECT %s, (SELECT to_checkpoint FROM babylon_rl.promotions ORDER BY promotion_id DESC LIMIT 1),
                          %s, 'test', 'test', '{}'""",
                (RUN, checkpoint_id),
            )
        return time.monotonic()

    def ask(self, **changes) -> httpx.Response:
        """One call as an agent makes it."""
        headers = {"Authorization": f"Bearer {self.key}", **changes.pop("headers", {})}
        body = {**ASK, **changes}
        return httpx.post(f"{self.serving.base_url}/chat/completions", json=body, headers=headers, timeout=60)

    def answers(self) -> str:
        """Which checkpoint answers an agent now; the status where none does."""
        try:
            response = self.ask()
        except httpx.HTTPError as error:
            return type(error).__name__
        return response.headers.get("x-babylon-checkpoint", str(response.status_code))

    def await_answer(self, checkpoint_id: str, seconds: float = 60.0) -> float:
        """Wait until the checkpoint answers; the moment of its first answer."""
        deadline = time.monotonic() + seconds
        while (found := self.answers()) != checkpoint_id:
            assert time.monotonic() < deadline, f"{found} answers, not {checkpoint_id}: {self.said[-6:]}"
            time.sleep(0.05)
        return time.monotonic()

    def booked(self, *columns: str) -> list[tuple]:
        """Rows of `deployments`, the oldest first."""
        with self.database.connect() as connection:
            rows = connection.execute(
                "SELECT role, checkpoint_id, state, reason FROM babylon_rl.deployments ORDER BY deployment_id"
            ).fetchall()
        return rows

    def await_booked(self, wanted: tuple[str, str | None, str], seconds: float = 20.0) -> tuple:
        """The latest row of that role, checkpoint and state, once it is booked."""
        deadline = time.monotonic() + seconds
        while not (found := [row for row in self.booked() if row[:3] == wanted]):
            assert time.monotonic() < deadline, f"{wanted} is not among {self.booked()}"
            time.sleep(0.1)
        return found[-1]


@contextlib.contextmanager
def served(database: Database, settings: Settings, base: Path, **options) -> Iterator[Served]:
    """Gateway, shipper, deployer and endpoint, looked after until the end."""
    said: list[str] = []
    options = {"port": 0, "pace": Pace(rest=1.0, pause=3.0), **options}
    serving = Serving(database, settings, Options(**options), lambda name, seed: base, said.append)
    ended = threading.Event()

    def keep() -> None:
        while not ended.is_set():
            serving.look()
            ended.wait(0.05)

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield Served(serving, database, said, serving.first_key or "none")
    finally:
        ended.set()
        thread.join()
        serving.close()
