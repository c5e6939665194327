"""The loopback training service, asked by ART's real client: the protocol, and each fault as the client meets it."""

import asyncio
import json
import urllib.request
from collections.abc import Iterator

import msgspec
import openai
import pytest

from babylon_rl.bench.training_books import submission_key
from babylon_rl.bench.training_faults import FAULTS, Fault, Seen, seeded
from babylon_rl.bench.training_service import TrainingService, training_service


@pytest.fixture
def client_of(monkeypatch: pytest.MonkeyPatch):
    """ART's client of a service, which gives up an answer after 0.2 s."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    monkeypatch.setenv("PYTHON_DOTENV_DISABLED", "1")
    from art.serverless.client import Client

    def make(service: TrainingService, api_key: str | None = None):
        client = Client(api_key=api_key or service.api_key, base_url=service.base_url)
        client.timeout = 0.2
        return client

    return make


def choice(token: str = "token_id:7", logprob: float = -0.5) -> dict:
    return {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "HOLD"},
        "logprobs": {"content": [{"token": token, "logprob": logprob, "bytes": None, "top_logprobs": []}]},
    }


def group(rewards: tuple[float, ...] = (0.0, 1.0), said: dict | None = None, name: str = "a"):
    """An ART group of real choices, one answer a member."""
    import art
    from openai.types.chat.chat_completion import Choice

    return art.TrajectoryGroup(
        art.Trajectory(
            messages_and_choices=[{"role": "user", "content": name}, Choice.model_validate(said or choice())],
            reward=reward,
        )
        for reward in rewards
    )


async def registered(client, name: str = "agent"):
    return await client.models.create(project="p", name=name, base_model="base", return_existing=True)


async def submitted(client, model, groups=None):
    config = {"learning_rate": 1e-5, "ppo": False}
    return await client.training_jobs.create(
        model_id=model.id, trajectory_groups=groups or [group()], experimental_config=config
    )


async def types_of(client, job) -> list[str]:
    return [event.type async for event in client.training_jobs.events.list(training_job_id=job.id, limit=2)]


async def steps_of(client, model) -> list[int]:
    return [c.step async for c in client.models.checkpoints.list(model_id=model.id, order="desc", limit=2)]


@pytest.fixture
def still() -> Iterator[TrainingService]:
    """A service whose time stands still until it is told to go on."""
    with training_service(speed=None) as service:
        yield service


def submit_once(service: TrainingService, client_of) -> object:
    """What one submission comes to for the client: the job or the error."""

    async def go():
        async with client_of(service) as client:
            model = await registered(client)
            try:
                return await submitted(client, model)
            except Exception as error:
                return error

    return asyncio.run(go())


def test_a_job_goes_through_its_events_and_makes_a_step_at_their_end(still, client_of):
    async def go() -> None:
        async with client_of(still) as client:
            model = await registered(client)
            assert (model.entity, model.name) == ("loopback", "agent")
            assert (await registered(client)).id == model.id
            job = await submitted(client, model)
            assert await types_of(client, job) == [] and await steps_of(client, model) == []
            still.advance(3)
            assert await types_of(client, job) == ["training_started", "gradient_step"]
            assert still.books.jobs[job.id]["state"] == "running"
            still.advance(10)
            assert await types_of(client, job) == ["training_started", *["gradient_step"] * 2, "training_ended"]
            assert await steps_of(client, model) == [1]

    asyncio.run(go())
    books = still.books
    key = submission_key("model-1", [group().model_dump(mode="json")])
    assert list(books.accepted) == [key] and books.steps == {"model-1": 1} and not books.twice()


def test_art_trains_on_it_as_on_the_hosted_service(client_of):
    import art
    from art.serverless.backend import ServerlessBackend

    async def go() -> None:
        backend = ServerlessBackend(base_url=service.base_url, api_key=service.api_key)
        model = art.TrainableModel(name="agent", project="p", base_model="base", base_path="/nowhere")
        await model.register(backend)
        object.__setattr__(model, "_get_wandb_run", lambda: None)
        result = await backend.train(model, [group()], learning_rate=1e-5)
        assert result.step == 1 and result.artifact_name == "loopback/p/agent:step1"
        await backend._delete_checkpoint_files(model, [])
        await backend.delete(model)
        await backend.close()

    with training_service() as service:
        asyncio.run(go())
        assert service.books.models["model-1"]["deleted"]


def test_checkpoints_are_listed_by_page_and_deleted_by_step(still, client_of):
    async def go() -> None:
        async with client_of(still) as client:
            model = await registered(client)
            for number in range(5):
                await submitted(client, model, [group(name=str(number))])
            still.advance(100)
            assert await steps_of(client, model) == [5, 4, 3, 2, 1]
            gone = await client.models.checkpoints.delete(model_id=model.id, steps=[1, 9])
            assert (gone.deleted_count, gone.not_found_steps) == (1, [9])
            assert await steps_of(client, model) == [5, 4, 3, 2]
            await submitted(client, model, [group(name="6")])
            still.advance(100)
            assert (await steps_of(client, model))[0] == 6

    asyncio.run(go())
    assert still.books.overlapping == 4  # all but the first and the last


def test_the_same_submission_twice_is_two_jobs(still, client_of):
    for _ in range(2):
        submit_once(still, client_of)
    assert [len(ids) for ids in still.books.twice().values()] == [2]


def test_another_process_reads_the_books(still, client_of):
    submit_once(still, client_of)
    with urllib.request.urlopen(f"{still.origin}/books") as answer:
        read = json.load(answer)
    assert read == msgspec.to_builtins(still.books) and len(read["jobs"]) == 1


def test_a_wrong_key_and_an_unknown_model_are_refused(still, client_of):
    async def go() -> None:
        with pytest.raises(openai.AuthenticationError):
            await registered(client_of(still, "another-key"))
        client = client_of(still)
        with pytest.raises(openai.NotFoundError):
            await client.training_jobs.create(model_id="model-9", trajectory_groups=[group()], experimental_config={})

    asyncio.run(go())
    assert not still.books.models and not still.books.jobs


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (lambda: [group((0.5, 0.5))], "unequal reward"),
        (lambda: [group(said=choice("BUY"))], "token_id"),
        (lambda: [group(said={**choice(), "logprobs": None})], "no logprobs"),
        (lambda: [group(said={**choice(), "logprobs": {"content": []}})], "no logprobs"),
        (lambda: [group(said=choice(logprob=0.5))], "at most 0"),
        (lambda: [], "unequal reward"),
    ],
)
def test_what_would_be_trained_wrong_is_refused(still, client_of, groups, said):
    async def go() -> None:
        async with client_of(still) as client:
            model = await registered(client)
            with pytest.raises(openai.UnprocessableEntityError, match=said):
                await client.training_jobs.create(
                    model_id=model.id, trajectory_groups=groups(), experimental_config={"learning_rate": 1e-5}
                )

    asyncio.run(go())
    assert not still.books.jobs


def test_numbers_that_json_does_not_know_never_reach_it_and_would_be_refused(still, client_of):
    async def go() -> None:
        async with client_of(still) as client:
            model = await registered(client)
            with pytest.raises(ValueError):
                await submitted(client, model, [group((float("nan"), 1.0))])
            raw = b'{"model_id": "model-1", "trajectory_groups": [{"trajectories": [{"reward": NaN}]}]}'
            request = urllib.request.Request(f"{still.base_url}/preview/training-jobs", raw)
            request.add_header("Authorization", f"Bearer {still.api_key}")
            with pytest.raises(urllib.error.HTTPError, match="400"):
                urllib.request.urlopen(request)

    asyncio.run(go())
    assert not still.books.jobs


# What the client is left with after one submission; None: the job.
LEFT_WITH: dict[str, type[Exception] | None] = {
    "accepted_never_answered": openai.APITimeoutError,
    "accepted_answered_late": openai.APITimeoutError,
    "accepted_500": openai.InternalServerError,
    "accepted_502": openai.InternalServerError,
    "accepted_524": openai.APITimeoutError,
    "accepted_524_later": openai.InternalServerError,
    "accepted_broken": openai.APIConnectionError,
    "accepted_half_an_answer": openai.APIConnectionError,
    "accepted_page_of_a_proxy": None,
    "accepted_502_repeats_reply": openai.InternalServerError,
    "refused_500": openai.InternalServerError,
    "refused_502": openai.InternalServerError,
    "refused_524": openai.InternalServerError,
    "refused_broken": openai.APIConnectionError,
    "refused_never_answered": openai.APITimeoutError,
    "refused_429": openai.RateLimitError,
    "refused_401": openai.AuthenticationError,
}


@pytest.mark.parametrize("name", LEFT_WITH)
def test_a_fault_of_the_submission_leaves_the_client_with_an_error_and_the_books_with_the_truth(name, client_of):
    with training_service(name, speed=None) as service:
        left = submit_once(service, client_of)
        expected = LEFT_WITH[name]
        assert isinstance(left, expected) if expected else not hasattr(left, "id")
        service.advance(1000)
        accepted = name.startswith("accepted")
        assert service.books.steps == {"model-1": int(accepted)}
        assert [len(ids) for ids in service.books.accepted.values()] == [1] * accepted


def test_every_fault_of_a_submission_is_tested_here():
    of_the_answer = {name for name, fault in FAULTS.items() if fault.answer != "ok" or fault.answer_after}
    assert of_the_answer == set(LEFT_WITH)


@pytest.mark.parametrize("name", ["repeats_reply", "accepted_502_repeats_reply"])
def test_a_proxy_that_repeats_a_reply_hides_that_the_retry_is_the_same_job(name, client_of):
    with training_service(name, speed=None) as service:
        first, second = (submit_once(service, client_of) for _ in range(2))
        assert second.id == "job-2" and len(service.books.jobs) == 1
        assert getattr(first, "id", "job-2") == "job-2"


# Events that can be read and the steps, at the job's last event (6 s) and long after it.
COURSES = {
    "step_late": (4, 0, 4, 1),
    "step_late_without_events": (0, 0, 0, 1),
    "step_never": (4, 0, 4, 0),
    "events_none": (0, 1, 0, 1),
    "events_without_end": (3, 1, 3, 1),
    "events_some": (2, 1, 2, 1),
    "events_twice": (8, 1, 8, 1),
    "events_reordered": (4, 1, 4, 1),
    "hangs": (1, 0, 1, 0),
    "fails": (4, 0, 4, 0),
}


@pytest.mark.parametrize("name", COURSES)
def test_a_fault_of_the_job_shows_in_its_events_and_steps(name, client_of):
    async def look(client, model, job) -> tuple[int, int]:
        return len(await types_of(client, job)), len(await steps_of(client, model))

    async def go() -> None:
        async with client_of(service) as client:
            model = await registered(client)
            job = await submitted(client, model)
            service.advance(6)
            soon = await look(client, model, job)
            service.advance(10_000)
            assert soon + await look(client, model, job) == COURSES[name]

    with training_service(name, speed=None) as service:
        asyncio.run(go())
        assert next(iter(service.books.jobs.values()))["fault"] == name


def test_events_come_in_another_order_and_a_failure_says_why(client_of):
    async def events(name: str) -> list[tuple[str, dict]]:
        async with client_of(service) as client:
            job = await submitted(client, await registered(client, name))
            service.advance(100)
            return [(e.type, e.data) async for e in client.training_jobs.events.list(training_job_id=job.id)]

    with training_service(["events_reordered", "fails"], speed=None) as service:
        reordered = [kind for kind, _ in asyncio.run(events("a"))]
        assert reordered != ["training_started", *["gradient_step"] * 2, "training_ended"]
        assert sorted(reordered) == ["gradient_step", "gradient_step", "training_ended", "training_started"]
        assert asyncio.run(events("b"))[-1] == ("training_failed", {"error_message": "CUDA out of memory"})


@pytest.mark.parametrize(("name", "comes_back"), [("events_503_for_a_while", True), ("events_503_for_ever", False)])
def test_the_events_endpoint_is_away_for_a_while_or_for_ever(name, comes_back, client_of):
    async def go() -> None:
        async with client_of(service) as client:
            job = await submitted(client, await registered(client))
            service.advance(10)
            with pytest.raises(openai.InternalServerError):
                await types_of(client, job)
            service.advance(10)
            if comes_back:
                assert len(await types_of(client, job)) == 4
            else:
                with pytest.raises(openai.InternalServerError):
                    await types_of(client, job)
            assert (await client.get(f"/preview/training-jobs/{job.id}", cast_to=object))["id"] == job.id

    with training_service(name, speed=None) as service:
        asyncio.run(go())
        assert service.books.steps == {"model-1": 1}


def test_a_script_may_disturb_any_request(client_of):
    def script(seen: Seen) -> Fault | None:
        wrong = {"register": Fault(accepted=False, answer=503), "checkpoints": Fault(answer="broken")}
        return wrong.get(seen.kind) if seen.number == 0 else None

    async def go() -> None:
        async with client_of(service) as client:
            with pytest.raises(openai.InternalServerError):
                await registered(client)
            model = await registered(client)
            assert await steps_of(client, model) == []  # the client asked again by itself

    with training_service(script) as service:
        asyncio.run(go())
        assert service.books.requests == {"register": 2, "checkpoints": 2}


def test_a_seeded_script_says_the_same_of_a_submission_whenever_it_comes():
    script = seeded(3, share=0.5)
    drawn = [script(Seen("submit", number, f"key-{number}")) for number in range(400)]
    again = [script(Seen("submit", 0, f"key-{number}")) for number in reversed(range(400))]
    assert drawn == again[::-1] and 120 < sum(fault is not None for fault in drawn) < 280
    assert {fault.name for fault in drawn if fault} == set(FAULTS)
    assert script(Seen("events", 0)) is None
