"""The hosted training service as it is asked, call by call, through ART's own client.

A question may be asked again; a submission is made once, and what its answer says is one of three things: the job's id,
that it is known to be refused (TrainingError), or that it may have arrived (Unsure).
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from babylon_rl.errors import SettingsError, TrainingError
from babylon_rl.settings import Settings, without_user
from babylon_rl.training.backends.art_contract import explanation
from babylon_rl.training.backends.submission import Submission
from babylon_rl.training.ledger import Job

if TYPE_CHECKING:
    from art.serverless.backend import ServerlessBackend

# Statuses by which a submission is known to be refused; after any other error it may have been taken.
REFUSED = frozenset({400, 401, 403, 404, 409, 413, 422, 429})
FORBIDDEN = frozenset({401, 403})
Result = TypeVar("Result")


class Limits(NamedTuple):
    """Seconds: until waiting for a job ends, between two questions, for a submission's answer, for a question's, and
    until a question that is asked again and again is given up."""

    deadline: float
    poll: float
    submit: float
    read: float
    patience: float

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        """As the settings say; an answer gets five minutes at most, a question one."""
        deadline = settings.job_deadline_minutes * 60
        return cls(
            deadline, settings.poll_seconds, min(300.0, deadline / 4), min(60.0, deadline / 8), min(120.0, deadline / 4)
        )


class Remote(NamedTuple):
    """The service as it is asked: ART's backend, its limits, and where its results are served."""

    backend: "ServerlessBackend"
    limits: Limits
    url: str
    api_key: str


class Unsure(Exception):
    """A submission that may have arrived."""


def key_of(settings: Settings) -> str:
    """The service's key. SettingsError where there is none."""
    found = "" if settings.wandb_api_key is None else settings.wandb_api_key.get_secret_value().strip()
    if not found:
        raise SettingsError("TRAINING_BACKEND=wandb needs WANDB_API_KEY, the key of your Weights & Biases account.")
    return found


@contextlib.contextmanager
def opened_service(settings: Settings) -> Iterator[Remote]:
    """The service through ART's client, with the user's environment kept away from its libraries.

    WANDB_API_KEY in the environment would start a run of W&B; litellm asks the network at import; ART reads a .env.
    """
    key = key_of(settings)
    changed = {"PYTHON_DOTENV_DISABLED": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "WANDB_API_KEY": None}
    before = {name: os.environ.get(name) for name in changed}
    _set(changed)
    try:
        try:
            from art.serverless.backend import ServerlessBackend
        except ImportError as error:
            raise TrainingError(explanation() or f"ART cannot be loaded ({error}); install openpipe-art.") from error
        backend = ServerlessBackend(api_key=key, base_url=settings.wandb_training_url)
        backend._client.max_retries = 0  # questions are asked again here, within the deadline
        yield Remote(backend, Limits.of(settings), without_user(settings.wandb_training_url), key)
    finally:
        _set(before)


def _set(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


async def closing(remote: Remote, work: Awaitable[Result]) -> Result:
    try:
        return await work
    finally:
        await remote.backend.close()


async def submit(remote: Remote, model_id: str, submission: Submission) -> str:
    """The remote job's id. TrainingError where it is known that none was made, Unsure where that is not known."""
    import httpx
    import openai

    try:
        call = remote.backend._client.training_jobs.create(
            model_id=model_id,
            trajectory_groups=submission.groups,
            experimental_config=submission.config,  # type: ignore[arg-type]
        )
        made = await asyncio.wait_for(call, remote.limits.submit)
    except openai.APIStatusError as error:
        said = said_by(remote, error)
        if error.status_code in REFUSED:
            raise TrainingError(
                refusal(error.status_code, f"the job ({error.status_code}: {said}). Nothing was trained.")
            ) from None
        raise Unsure(f"the submission was answered with {error.status_code} ({said})") from None
    except openai.APIConnectionError as error:
        said = said_by(remote, error.__cause__ or error)
        if isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout):  # it never left
            raise TrainingError(
                f"The training service {remote.url} cannot be reached ({said}). Nothing was sent. See that "
                "BABYLON_RL_WANDB_TRAINING_URL is right and that the network is there, and run it again."
            ) from None
        raise Unsure(f"the connection broke while it was submitted ({said})") from None
    except TimeoutError:
        raise Unsure(f"the submission was not answered within {remote.limits.submit:g} s") from None
    except Exception as error:
        raise Unsure(f"the submission's answer could not be read ({said_by(remote, error)})") from None
    remote_job_id = getattr(made, "id", None)
    if not isinstance(remote_job_id, str) or not remote_job_id:
        raise Unsure("the submission's answer held no id of a job")
    return remote_job_id


def refusal(status: int, what: str) -> str:
    """The sentences for a request that is known to be refused: what was refused, and the remedy."""
    mend = {
        401: "See that WANDB_API_KEY is right.",
        403: "See that the key may train in WANDB_ENTITY and WANDB_PROJECT.",
        404: "The model is not there; see BABYLON_RL_WANDB_TRAINING_URL, WANDB_ENTITY and WANDB_PROJECT.",
        413: "Take fewer windows an update (--windows-per-iteration), or fewer trajectories (--target-trajectories).",
        429: "The service is busy or your quota is used up; run it again later.",
    }
    return (
        f"The training service refused {what} "
        f"{mend.get(status, 'The service says what it did not like; mend that and run it again.')}"
    )


async def events_of(remote: Remote, job: Job) -> list[Any]:
    """The events after the cursor, as many as there are."""
    from openai._types import NOT_GIVEN

    listed = remote.backend._client.training_jobs.events.list(
        training_job_id=str(job.remote_job_id), after=job.cursor or NOT_GIVEN
    )
    found = [event async for event in listed]
    if not all(isinstance(getattr(event, "id", None), str) for event in found):
        raise ValueError("an event has no id")
    return found


async def step_of(remote: Remote, model_id: str) -> int:
    """The model's latest step; 0 where it has no checkpoint."""
    async for checkpoint in remote.backend._client.models.checkpoints.list(limit=1, order="desc", model_id=model_id):
        if not isinstance(checkpoint.step, int):
            raise ValueError("a checkpoint has no step")
        return checkpoint.step
    return 0


async def question(remote: Remote, call: Callable[[], Awaitable[Result]]) -> Result | None:
    """The answer, or None where there was none this time. TrainingError where asking again cannot help."""
    import openai

    try:
        return await asyncio.wait_for(call(), remote.limits.read)
    except openai.APIStatusError as error:
        if error.status_code in FORBIDDEN:
            raise TrainingError(
                f"The training service does not answer this key any more ({error.status_code}: "
                f"{said_by(remote, error)}). The job goes on there. "
                "See that WANDB_API_KEY is right and run it again: nothing is sent twice."
            ) from None
        return None
    except Exception:  # a broken connection, a page of a proxy, half an answer: it is asked again
        return None


async def patiently(remote: Remote, call: Callable[[], Awaitable[Result]], what: str) -> Result:
    """The answer to a question that may be asked again and again; TrainingError once patience is at its end."""
    import openai

    until, wait, said = time.monotonic() + remote.limits.patience, remote.limits.poll, ""
    while True:
        try:
            return await asyncio.wait_for(call(), remote.limits.read)
        except openai.APIStatusError as error:
            said = f"{error.status_code}: {said_by(remote, error)}"
            if error.status_code in REFUSED - {409, 429}:
                raise TrainingError(
                    refusal(error.status_code, f"to {what} ({said}). Nothing was sent just now.")
                ) from None
        except Exception as error:
            said = said_by(remote, error)
        if time.monotonic() + wait > until:
            raise TrainingError(
                f"The training service {remote.url} could not be asked to {what} ({said}). Nothing was sent just now; "
                "see that BABYLON_RL_WANDB_TRAINING_URL is right, and run it again."
            )
        await asyncio.sleep(wait)
        wait = min(2 * wait, 60.0)


def said_by(remote: Remote, error: BaseException) -> str:
    """An error's words, without the key and in one line."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words.replace(remote.api_key, "***")[:200]
