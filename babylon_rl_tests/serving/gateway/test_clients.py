"""Agents as they are written: the real `openai` packages of Python and TypeScript against a gateway and a real model.

Every process is the one that a user starts: endpoint, gateway, and the shipper's pass into PostgreSQL.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import openai
import pytest

from babylon_rl.database.connect import Database
from babylon_rl.recording.reader import read_window
from babylon_rl.serving.gateway.files import write_keys, write_routes
from babylon_rl.serving.gateway.keys import Key, secret_digest
from babylon_rl.serving.gateway.process import running_gateway
from babylon_rl.serving.gateway.shipper import ship
from babylon_rl.serving.process import running_endpoint
from babylon_rl.serving.routing import Routes, Target

SECRET = "brl_test_of-clients"
MESSAGES = [{"role": "system", "content": "You trade."}, {"role": "user", "content": "BUY or SELL?"}]
TYPESCRIPT = Path(__file__).parent.parent / "typescript"
READY = shutil.which("node") is not None and (TYPESCRIPT / "node_modules").is_dir()


class Served(NamedTuple):
    base_url: str
    folder: Path


@pytest.fixture(scope="module")
def served(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("gateway")
    with running_endpoint(tiny, "tiny", "cpu", 1) as endpoint:
        base = Target(checkpoint_id="demo@0", base_url=endpoint.base_url, model="tiny")
        write_routes(folder, Routes(promoted=None, base=base, targets={"demo@0": base}))
        write_keys(folder, [Key(key_id="k", secret_sha256=secret_digest(SECRET), scopes=("call", "record"))])
        with running_gateway(folder) as gateway:
            yield Served(gateway.base_url, folder)


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.base_url, api_key=SECRET, max_retries=0) as client:
        yield client


def test_an_agent_in_python_changes_base_url_and_key_alone(client: openai.OpenAI):
    answer = client.chat.completions.create(model="babylon", messages=MESSAGES, max_tokens=6, seed=1)
    assert answer.usage and answer.usage.completion_tokens and answer.choices[0].logprobs is None
    asked = client.chat.completions.create(
        model="babylon", messages=MESSAGES, max_tokens=6, seed=1, logprobs=True, top_logprobs=2
    )
    assert asked.choices[0].message.content == answer.choices[0].message.content
    assert asked.choices[0].logprobs and asked.choices[0].logprobs.content
    assert all(len(entry.top_logprobs) == 2 for entry in asked.choices[0].logprobs.content)
    assert [model.id for model in client.models.list()]


def test_a_stream_in_python_says_what_the_whole_answer_says(client: openai.OpenAI):
    whole = client.chat.completions.create(model="babylon", messages=MESSAGES, max_tokens=6, seed=2)
    chunks = client.chat.completions.create(model="babylon", messages=MESSAGES, max_tokens=6, seed=2, stream=True)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content


def test_refusals_reach_python_as_the_packages_own_errors(served: Served, client: openai.OpenAI):
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="brl_wrong").chat.completions.create(model="babylon", messages=MESSAGES)
    with pytest.raises(openai.PermissionDeniedError):
        client.chat.completions.create(model="demo@0", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="babylon", messages=MESSAGES, temperature=99)


@pytest.mark.skipif(not READY, reason="no node, or no packages: `make typescript` says why")
def test_an_agent_in_typescript_plays_and_its_trajectory_is_read_as_any_other(
    served: Served, database: Database, tmp_path: Path
):
    built = TYPESCRIPT / "build" / tmp_path.name  # below the packages that it imports
    try:
        subprocess.run(["npx", "tsc", "--outDir", built], cwd=TYPESCRIPT, check=True, capture_output=True, timeout=120)
        played = subprocess.run(
            ["node", built / "agent.js", "ts-agent"],
            env={"PATH": os.environ["PATH"], "OPENAI_BASE_URL": served.base_url, "OPENAI_API_KEY": SECRET},
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        shutil.rmtree(built, ignore_errors=True)
    assert played.returncode == 0, played.stderr
    told = json.loads(played.stdout)
    assert told["text"] == told["streamed"] and told["refused"] == 401
    assert told["checkpoint"] == "demo@0" and told["logprobs"] is None and told["usage"]["completion_tokens"] > 0

    ship(database, served.folder)
    with database.connect() as connection:
        (window_id,) = connection.execute(
            "SELECT window_id FROM babylon_rl.gateway_calls WHERE trajectory_id = %s", (told["trajectoryId"],)
        ).fetchone()
    with database.recordings() as recordings:
        recorded = read_window(recordings, window_id)
    (trajectory,) = [one for one in recorded.usable if one.trajectory_id == told["trajectoryId"]]
    (call,) = trajectory.calls
    assert trajectory.agent_id == "ts-agent" and call.checkpoint == "demo@0"
    assert len(call.token_ids) == len(call.logprobs) == told["usage"]["completion_tokens"]
    (step,) = trajectory.steps
    assert step.llm_calls[0].response == told["text"]
    assert step.llm_calls[0].user_prompt.endswith("ünïcödé ✓")
