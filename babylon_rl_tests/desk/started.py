"""A started desk for the tests, in a process of its own, and the questions that they ask it over GraphQL."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import yaml

from babylon_rl.defs.jobs import DATA_ASSETS
from babylon_rl.desk import desk_environment, open_desk
from babylon_rl.settings import REPOSITORY, get_settings
from babylon_rl_tests.conftest import of_the_user

PATIENCE_SECONDS = 150.0  # a run takes 10 s from its launch on a quiet machine
LOCATION = {"repositoryLocationName": "babylon_rl", "repositoryName": "__repository__"}
FINISHED = {"SUCCESS", "FAILURE", "CANCELED"}
T = TypeVar("T")


def write_home(home: Path) -> None:
    """Dagster's home with the committed dagster.yaml, in which only two intervals are shorter."""
    configuration = yaml.safe_load((REPOSITORY / "dagster_home" / "dagster.yaml").read_text())
    configuration["run_monitoring"] |= {"poll_interval_seconds": 2, "free_slots_after_run_end_seconds": 1}
    home.mkdir()
    (home / "dagster.yaml").write_text(yaml.safe_dump(configuration))


def wait_for(found: Callable[[], T], what: str) -> T:
    """What `found` gives as soon as it is true; AssertionError where that takes too long."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.25)
    raise AssertionError(f"{what}: not within {PATIENCE_SECONDS:.0f} s")


class Desk:
    """What a person does at the started desk, by the mutations and queries that the UI sends."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.client = httpx.Client(trust_env=False, timeout=60)

    def ask(self, query: str, **variables: Any) -> Any:
        """The one field that the query asks for; AssertionError where it is an error of any kind."""
        answer = self.client.post(f"{self.url}/graphql", json={"query": query, "variables": variables}).json()
        assert "errors" not in answer, answer["errors"]
        (value,) = answer["data"].values()
        assert not (isinstance(value, dict) and "message" in value), value
        return value

    def backfill(self, partitions: list[str], assets: tuple[str, ...] = DATA_ASSETS) -> str:
        """Launch a backfill of the assets; its id."""
        return self.ask(
            """mutation ($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
                 ... on LaunchBackfillSuccess { backfillId } ... on Error { message } } }""",
            params={"assetSelection": [{"path": [name]} for name in assets], "partitionNames": partitions},
        )["backfillId"]

    def backfill_status(self, backfill: str) -> str:
        return self.ask(
            "query ($id: String!) { partitionBackfillOrError(backfillId: $id) {"
            " ... on PartitionBackfill { status } ... on Error { message } } }",
            id=backfill,
        )["status"]

    def launch(self, partition: str, assets: tuple[str, ...] = DATA_ASSETS) -> str:
        """Launch a run of the assets for one partition; the run's id."""
        return self.ask(
            """mutation ($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) {
                 ... on LaunchRunSuccess { run { runId } } ... on Error { message } } }""",
            params={
                "selector": LOCATION
                | {"pipelineName": "__ASSET_JOB", "assetSelection": [{"path": [name]} for name in assets]},
                "executionMetadata": {"tags": [{"key": "dagster/partition", "value": partition}]},
            },
        )["run"]["runId"]

    def runs(self, **tags: str) -> list[dict[str, Any]]:
        """Runs with these tags (`__` for `/`), the newest first."""
        return self.ask(
            """query ($filter: RunsFilter) { runsOrError(filter: $filter) {
                 ... on Runs { results { runId status tags { key value } } } ... on Error { message } } }""",
            filter={"tags": [{"key": key.replace("__", "/"), "value": value} for key, value in tags.items()]},
        )["results"]

    def status(self, run: str) -> str:
        return self.ask(
            "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } ... on Error { message } } }", id=run
        )["status"]

    def finished(self, run: str) -> str:
        """The run's status once it has ended."""
        return wait_for(lambda: (status := self.status(run)) in FINISHED and status, f"run {run} ends")

    def events(self, run: str) -> list[dict[str, Any]]:
        return self.ask(
            """query ($id: ID!) { logsForRun(runId: $id, limit: 1000) { ... on EventConnection { events {
                 __typename ... on MessageEvent { message stepKey }
                 ... on AssetCheckEvaluationEvent { evaluation { checkName success } } } }
               ... on Error { message } } }""",
            id=run,
        )["events"]

    def materialized(self, asset: str) -> int:
        """How many partitions of the asset are materialized."""
        return self.ask(
            """query ($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) {
                 ... on AssetNode { partitionStats { numMaterialized } } } }""",
            key={"path": [asset]},
        )["partitionStats"]["numMaterialized"]

    def pool(self, name: str) -> dict[str, Any]:
        """Slots and waiting steps of a pool."""
        return self.ask(
            """query ($pool: String!) { instance { concurrencyLimit(concurrencyKey: $pool) {
                 slotCount activeSlotCount claimedSlots { runId } pendingStepCount } } }""",
            pool=name,
        )["concurrencyLimit"]

    def start_sensor(self, name: str) -> str:
        """Turn a sensor on; the id to turn it off with."""
        return self.ask(
            """mutation ($selector: SensorSelector!) { startSensor(sensorSelector: $selector) {
                 ... on Sensor { sensorState { id status } } ... on Error { message } } }""",
            selector=LOCATION | {"sensorName": name},
        )["sensorState"]["id"]

    def failed_ticks(self, sensor: str) -> list[str]:
        """What the sensor's latest failed ticks say."""
        state = self.ask(
            """query ($selector: SensorSelector!) { sensorOrError(sensorSelector: $selector) { ... on Sensor {
                 sensorState { ticks(limit: 5, statuses: [FAILURE]) { error { message causes { message } } } } }
               ... on Error { message } } }""",
            selector=LOCATION | {"sensorName": sensor},
        )["sensorState"]
        return [str(tick["error"]) for tick in state["ticks"]]

    def stop_sensor(self, state: str) -> None:
        self.ask(
            "mutation ($id: String) { stopSensor(id: $id) { ... on StopSensorMutationResult { __typename }"
            " ... on Error { message } } }",
            id=state,
        )


@contextmanager
def started_desk(folder: Path, environment: dict[str, str]) -> Iterator[Desk]:
    """A desk in a process of its own, ended as a user ends it; AssertionError where that leaves a process behind."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "babylon_rl_tests.desk.started", str(folder)],
        env={name: value for name, value in os.environ.items() if not of_the_user(name)} | environment,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("Dagster: http"):
                break
        else:
            raise AssertionError("".join(said))
        yield Desk(said[-1].split()[1], folder)
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)[0]
        assert process.returncode == 0 and "Dagster is down." in rest, rest
        left = [child for child in below if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        assert not left, f"the desk left processes behind: {left}"
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def main(folder: Path) -> None:
    """The desk's process: what `babylon-rl ui` does, with Dagster's home in `folder` and logs beside it."""
    settings = get_settings()
    environment = desk_environment(settings, sensors=False, home=folder / "home")
    open_desk(environment, folder, None, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
