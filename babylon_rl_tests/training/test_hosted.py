"""The hosted backend against the loopback service, through ART's real client: whatever goes wrong, one job is one."""

import json
import os
import re
import sys
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from babylon_rl.bench.submitting import BASE_MODEL, RECIPE, settings_of, snapshot_of
from babylon_rl.bench.training_faults import Fault
from babylon_rl.bench.training_service import TrainingService, training_service
from babylon_rl.errors import SettingsError, TrainingError
from babylon_rl.groups.trained_view import VerbatimError
from babylon_rl.settings import Settings
from babylon_rl.training import ledger
from babylon_rl.training.backends.hosted import settle, train_hosted
from babylon_rl.training.backends.hosted_service import opened_service
from babylon_rl.training.backends.submission import cents, estimate, model_name, prepare_submission, refuse_recipe
from babylon_rl.training.locks import working_on
from babylon_rl.training.trainer import TrainerResult
from babylon_rl_tests.training.jobs import request_of, written_job

LONG, SHORT = 60.0, 1.2  # seconds of a deadline: one that is not to be met, and one that is
# The service's clock runs fast enough for a job to be over before it is asked after, or stands still.
FAST, STILL = 10_000.0, None


class Hosted:
    """A job in the ledger, and the service that it is for."""

    def __init__(self, database, service: TrainingService, deadline: float = LONG) -> None:
        self.database, self.service, self.reported = database, service, []
        self.settings = settings_of(service.base_url, service.api_key, deadline, poll=0.02)
        self.job = written_job(database)

    def train(self, **changed) -> TrainerResult:
        settings = self.settings.model_copy(update=changed)
        return train_hosted(request_of(self.job, settings), self.database, settings, self.reported.append)

    def now(self) -> ledger.Job:
        with self.database.connect() as connection:
            return ledger.load_job(connection, self.job.job_id)

    def posted(self) -> int:
        return self.service.requests.count(("POST", "/v1/preview/training-jobs"))


def test_a_job_is_submitted_followed_and_its_step_adopted_with_the_name_it_answers_to(database, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "of-the-user")
    with training_service(speed=FAST) as service:
        hosted = Hosted(database, service)
        result = hosted.train()
        again = hosted.train()
        assert hosted.posted() == 1
    found = hosted.now()
    assert (found.state, found.step_before, found.step_after, found.submissions) == ("done", 0, 1, 1)
    assert result.inference_name == "wandb-artifact:///bench/submissions/chain-0-0:step1"
    assert (result.inference_url, result.step, result.folder) == (service.base_url, 1, None)
    assert again == result
    assert {"loss", "grad_norm"} <= result.metrics.keys() and len(result.steps) == len(hosted.reported) == 2
    assert os.environ["WANDB_API_KEY"] == "of-the-user"
    import art

    model = art.TrainableModel(name="chain-0-0", project="submissions", entity="bench", base_model="b")
    from art.serverless.backend import ServerlessBackend

    named = ServerlessBackend(api_key="k", base_url=service.base_url)._model_inference_name(model, 1)
    assert named == result.inference_name


@pytest.mark.parametrize(
    "fault",
    ["accepted_500", "accepted_524_later", "accepted_broken", "accepted_half_an_answer", "accepted_page_of_a_proxy",
     "step_late_without_events", "events_some", "events_twice", "events_reordered", "events_503_for_ever"],
)  # fmt: skip
def test_a_step_that_advances_is_adopted_whatever_was_said(database, fault):
    with training_service(fault, speed=FAST) as service:
        hosted = Hosted(database, service)
        assert hosted.train().step == 1
        assert hosted.posted() == 1 and not service.books.twice()
    found = hosted.now()
    assert found.state == "done" and len(found.steps) == len({name for name, _ in found.steps}) <= 2


@pytest.mark.parametrize(
    ("fault", "said"),
    [("refused_524", "524"), ("refused_never_answered", "was not answered"), ("step_never", "it ended"),
     ("hangs", "still 0")],
)  # fmt: skip
def test_a_doubt_that_the_deadline_ends_is_told_never_sent_again_and_settled_by_a_person(database, fault, said):
    with training_service(fault, speed=FAST) as service:
        hosted = Hosted(database, service, deadline=SHORT)
        for _ in range(2):
            with pytest.raises(TrainingError, match="jobs settle") as told:
                hosted.train()
        assert said in str(told.value) and hosted.posted() == 1
        assert settle(database, hosted.settings, hosted.job.job_id, "ann").state == "in_doubt"
    assert "still stands at step 0" in hosted.now().error


def test_a_step_that_comes_after_the_doubt_is_adopted_by_the_next_attempt(database):
    with training_service("accepted_524", speed=STILL) as service:
        service.follow(Fault(name="524", answer=524))
        hosted = Hosted(database, service, deadline=SHORT)
        with pytest.raises(TrainingError, match="in doubt"):
            hosted.train()
        service.advance(1e6)
        assert hosted.train().step == 1 and hosted.posted() == 1


@pytest.mark.parametrize("fault", ["refused_429", "refused_401"])
def test_what_is_known_to_be_refused_may_be_sent_again(database, fault):
    with training_service([fault, None], speed=FAST) as service:
        hosted = Hosted(database, service)
        with pytest.raises(TrainingError, match=r"quota|WANDB_API_KEY"):
            hosted.train()
        assert (hosted.now().state, hosted.now().submissions) == ("written", 1)
        assert hosted.train().step == 1 and hosted.posted() == 2 and not service.books.twice()


def test_a_service_that_cannot_be_reached_is_told_and_nothing_is_sent(database):
    with training_service(speed=FAST) as service:
        pass
    hosted = Hosted(database, service, deadline=0.5)
    with pytest.raises(TrainingError, match="WANDB_TRAINING_URL"):
        hosted.train()
    assert (hosted.now().state, hosted.now().submissions) == ("written", 0)


def test_a_job_that_failed_there_is_sent_again_only_when_a_person_says_so(database):
    with training_service(["fails", None], speed=FAST) as service:
        hosted = Hosted(database, service)
        for _ in range(2):
            with pytest.raises(TrainingError, match="CUDA out of memory.*jobs retry"):
                hosted.train()
        assert hosted.posted() == 1
        with database.connect() as connection:
            ledger.retry(connection, hosted.job.job_id, "ann")
        assert hosted.train().step == 1 and hosted.posted() == 2


def test_a_failure_that_was_read_before_the_worker_died_is_read_again(database):
    with training_service("fails", speed=FAST) as service:
        hosted = Hosted(database, service, deadline=SHORT)
        with pytest.raises(TrainingError):
            hosted.train()
        before = hosted.now()
        with database.connect() as connection:  # as if it had been killed between reading the end and booking it
            ledger.retry(connection, before.job_id, "ann")
            connection.execute(
                "UPDATE babylon_rl.training_attempts SET state = 'submitting' WHERE job_id = %s", (before.job_id,)
            )
            connection.execute(
                """UPDATE babylon_rl.training_attempts SET state = 'running', remote_job_id = %s, cursor = %s,
                   deadline = now() + interval '1 minute' WHERE job_id = %s""",
                (before.remote_job_id, before.cursor, before.job_id),
            )
        with pytest.raises(TrainingError, match="CUDA out of memory"):
            hosted.train()


@pytest.mark.parametrize("accepted", [True, False])
def test_a_job_found_submitting_is_a_doubt_and_never_posted(database, accepted):
    with training_service(speed=FAST) as service:
        hosted = Hosted(database, service, deadline=SHORT)
        if accepted:
            assert hosted.train().step == 1
        model_id = next(iter(service.books.models), "model-1")
        other = written_job(database, place=1)
        hosted.job = other
        _die_while_submitting(hosted, model_id)
        posted = hosted.posted()
        if accepted:
            assert hosted.train().step == 1
        else:
            with pytest.raises(TrainingError, match="jobs settle"):
                hosted.train()
        assert hosted.posted() == posted


def _die_while_submitting(hosted: Hosted, model_id: str) -> None:
    deadline = datetime.now(UTC) + timedelta(seconds=SHORT)
    with working_on(hosted.database, hosted.job.job_id) as connection:
        ledger.before_submitting(connection, hosted.job.job_id, "there bench/submissions/x", model_id, 0, deadline)


def test_a_model_that_someone_else_trained_is_not_trained_on(database):
    with training_service(speed=FAST) as service:
        hosted = Hosted(database, service)
        hosted.train()
        hosted.job = written_job(database, place=1)  # on top of the base model, and not of step 1
        with pytest.raises(TrainingError, match="someone else trained it"):
            hosted.train()
        assert hosted.posted() == 1 and hosted.now().state == "written"


@pytest.mark.parametrize("dollars", [0.0, 0.0001, 0.01, 0.014, 1.1, 1.15, 12.345, 1234567.891])
def test_the_limit_that_a_person_is_told_to_agree_with_is_enough(dollars):
    assert dollars <= float(cents(dollars)) < dollars + 0.0101


@pytest.mark.parametrize(("limit", "price"), [(None, 0.0), (0.0, 5.0)])
def test_nothing_leaves_before_its_cost_was_agreed_to(database, limit, price):
    with training_service(speed=FAST) as service:
        hosted = Hosted(database, service)
        with pytest.raises(TrainingError, match="--max-cost") as told:
            hosted.train(max_cost=limit, training_price=price)
        assert "1 windows with 2 trajectories and 8 tokens" in str(told.value) and service.base_url in str(told.value)
        assert not service.requests
        with pytest.raises(SettingsError, match="WANDB_API_KEY"):
            hosted.train(wandb_api_key=None)
    assert estimate(2_000_000, Settings().model_copy(update={"training_price": 1.5})) == 3.0


def test_what_is_sent_is_the_trained_text_alone():
    submission = prepare_submission(snapshot_of(3, 4), RECIPE)
    sent = json.dumps([group.model_dump(mode="json") for group in submission.groups])
    assert "job 3-4" in sent and "token_id:7" in sent
    for other in ("3-4-0", "agent-0", "alpha", "2025-01", "chain"):
        assert other not in sent
    assert not submission.config["scale_rewards"]


def test_a_model_has_a_name_that_an_artifact_may_have_and_no_other_run_has():
    runs = ["a-2025-01-15T10:00-2025-01-15T10:00", "a:b", "a-b", "a/b", "a%b", "\u00e4", "x" * 300, "x" * 301]
    names = list(map(model_name, runs))
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", name) for name in names) and len(set(names)) == len(runs)
    assert names == list(map(model_name, runs)) and model_name("babylon_v2.1-b") == "babylon_v2.1-b"


def test_neither_the_ledger_nor_an_error_is_told_what_a_url_may_hide(database):
    with training_service(speed=FAST) as service:
        hosted = Hosted(database, service)
    hosted.settings = hosted.settings.model_copy(update={"wandb_training_url": "https://ann:hush@there/v1?key=hush"})
    with opened_service(hosted.settings) as remote:
        assert remote.url == "https://there/v1"
    with pytest.raises(TrainingError, match="--max-cost") as told:
        hosted.train(max_cost=None)
    assert "https://there/v1" in str(told.value) and "hush" not in str(told.value) + str(hosted.now())


def test_an_art_that_is_not_there_is_told_with_the_version_to_install(database, monkeypatch):
    with training_service(speed=FAST) as service:
        hosted = Hosted(database, service)
    monkeypatch.setitem(sys.modules, "art.serverless.backend", None)
    with pytest.raises(TrainingError, match="install openpipe-art"):
        settle(database, hosted.settings, hosted.job.job_id, "ann")


def test_the_model_is_made_from_the_runs_base_and_not_from_a_later_setting(database):
    with training_service(speed=FAST) as service:
        hosted = Hosted(database, service)
        hosted.train(wandb_base_model="another/base")
        [model] = service.books.models.values()
        assert model["base_model"] == BASE_MODEL


def test_what_the_service_cannot_train_is_refused_before_anything_is_sent():
    with pytest.raises(TrainingError, match="balanced_answers"):
        refuse_recipe(msgspec.structs.replace(RECIPE, balanced_answers=("BUY", "SELL")))
    with pytest.raises(TrainingError, match="all_actions"):
        refuse_recipe(msgspec.structs.replace(RECIPE, advantages="all_actions"))
    snapshot = snapshot_of(0, 0)
    group = snapshot.groups[0]
    first, *others = group.members
    bad = {
        "no number": msgspec.structs.replace(first, advantage=float("nan")),
        "cannot be trained": msgspec.structs.replace(first, loss="weighted_supervised"),
        "no sampled tokens": msgspec.structs.replace(
            first, decisions=[msgspec.structs.replace(first.decisions[0], token_ids=[], logprobs=[])]
        ),
        "log-probabilities": msgspec.structs.replace(
            first, decisions=[msgspec.structs.replace(first.decisions[0], logprobs=[])]
        ),
    }
    for said, member in bad.items():
        changed = msgspec.structs.replace(group, members=[member, *others])
        with pytest.raises((TrainingError, VerbatimError), match=said):
            prepare_submission(msgspec.structs.replace(snapshot, groups=(changed,)), RECIPE)
    level = msgspec.structs.replace(
        group, members=[msgspec.structs.replace(member, advantage=0.0) for member in group.members]
    )
    with pytest.raises(TrainingError, match="Nothing in the snapshot is trainable"):
        prepare_submission(msgspec.structs.replace(snapshot, groups=(level,)), RECIPE)
