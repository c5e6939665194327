"""Windows of the simulated market, played against a scripted endpoint: recordings with texts and tokens."""

from pathlib import Path

from babylon_rl.database.connect import Database
from babylon_rl.market.endpoint import Endpoint, Sampling
from babylon_rl.market.play import play_windows
from babylon_rl.market.trajectories import Label
from babylon_rl.market.world import make_window
from babylon_rl.recording.recorder import Recorder
from babylon_rl.windows import shift_window
from babylon_rl_tests.market.scripted import completion, endpoint

FIRST = "2025-01-15T10:00"


def play(database: Database, folder: Path, windows: int = 1, agents: int = 8, first: str = FIRST) -> list[str]:
    """The windows, recorded. What an agent answers depends on its prompt alone."""

    def reply(body):
        prompt = body["messages"][-1]["content"]
        return 200, completion(body["structured_outputs"]["choice"][sum(map(ord, prompt)) % 3])

    ids = [shift_window(first, number) for number in range(windows)]
    pairs = [(window_id, make_window(1, "train", number)) for number, window_id in enumerate(ids)]
    with endpoint(reply) as script, Recorder(database, folder / "spool.jsonl") as recorder:
        where = Endpoint(script.base_url, "policy")
        play_windows(database, recorder, where, pairs, agents=agents, label=Label("train"), sampling=Sampling(seed=4))
        assert recorder.close().complete
    return ids
