"""Clean windows, for the count of false alarms: of the simulated market, and as an application with much to say."""

import json
import math
import random
from datetime import UTC, datetime, timedelta

import msgspec

from babylon_rl.groups.hindsight_facts import Market
from babylon_rl.market.actions import parse_action
from babylon_rl.market.agents import make_agents
from babylon_rl.market.observation import observation, system_prompt
from babylon_rl.market.policies import choose
from babylon_rl.market.settlement import settle
from babylon_rl.market.trajectories import Label, make_run, market_history
from babylon_rl.market.world import make_window
from babylon_rl.outcomes.history import Path, Question
from babylon_rl.recording.records import Action, LLMCall, Step
from babylon_rl.recording.window import UsableTrajectory
from babylon_rl.windows import parse_window_id, shift_window

FIRST = "2025-01-15T10:00"


def ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def _row(name: str, first: float, last: float, question: str | None = None, outcome: str | None = None) -> dict:
    return {
        "instrument": name,
        "kind": "question" if question else "ticker",
        "question": question,
        "open": first,
        "close": last,
        "change": last - first if question else last / first - 1,
        "outcome": outcome,
    }


def _run(name: str, window_id: str, steps: list[Step], pnl: float, balance: float, end: datetime) -> UsableTrajectory:
    return UsableTrajectory(
        trajectory_id=name,
        agent_id=name,
        window_id=window_id,
        start_time=parse_window_id(window_id),
        end_time=end,
        steps=steps,
        first_pnl=0.0,
        last_pnl=pnl,
        window_pnl=pnl,
        final_balance=balance,
        calls=[],
        provenance="logged",
        digest=name,
    )


def simulated(seed: int, index: int, agents: int = 4) -> tuple[list[UsableTrajectory], Market]:
    """A window of the simulated market as it is recorded, without a database."""
    window_id = shift_window(FIRST, index)
    world, state = make_window(seed, "train", index), make_agents(seed, "train", index, agents)
    tickers, questions = market_history(window_id, world)
    paths = [Path(t.ticker, [ms(at) for at, _ in t.points], [p for _, p in t.points]) for t in tickers]
    paths += [Path(q.market_id, [ms(at) for at, _ in q.points], [p for _, p in q.points]) for q in questions]
    rows = [_row(i.name, i.open, i.close) for i in world.tickers]
    rows += [
        _row(q.market_id, q.points[0][1], q.points[-1][1], q.question, "YES" if q.resolution else "NO")
        for q in questions
    ]
    known = {q.market_id: Question(q.question, ms(q.ends_at)) for q in questions}
    actions = [parse_action(choose("random", world, agent), world.instrument(agent.instrument)) for agent in state]
    runs = []
    for agent, settled in zip(state, settle(world, state, actions), strict=True):
        recorded = make_run(window_id, world, agent, settled, Label("x"), None).trajectory
        call = LLMCall(
            model="m", system_prompt=system_prompt(), user_prompt=observation(world, agent), response="BUY",
            temperature=1.0, max_tokens=8, purpose="action",
        )  # fmt: skip
        steps = [msgspec.structs.replace(step, llm_calls=[call]) for step in recorded.steps]
        runs.append(
            _run(recorded.trajectory_id, window_id, steps, settled.pnl, agent.capital + settled.pnl, recorded.end_time)
        )
    return runs, Market(rows, paths, known)


class App:
    """One hour of an application with many tickers and questions, and prompts as its agents might be shown them."""

    def __init__(self, seed: int, tickers: int = 12, questions: int = 5) -> None:
        self.chance = random.Random(f"app/{seed}")
        self.window_id = shift_window(FIRST, seed)
        self.start = parse_window_id(self.window_id)
        self.moments = [ms(self.start + timedelta(minutes=m, milliseconds=137)) for m in range(60)]
        self.prices = {f"TICK{n}": self._walk(self.chance.uniform(5, 500), 0.003) for n in range(tickers)}
        self.odds = {f"{4000 + n}": self._odds() for n in range(questions)}
        self.texts = {name: f"Will company {name} announce product {name}-X before the gala?" for name in self.odds}

    def _walk(self, price: float, sigma: float) -> list[float]:
        path = []
        for _ in range(60):
            price *= math.exp(self.chance.gauss(0, sigma))
            path.append(round(price, 2))
        return path

    def _odds(self) -> list[float]:
        logit, path = self.chance.gauss(0, 1), []
        for _ in range(60):
            logit += self.chance.gauss(0, 0.05)
            path.append(round(1 / (1 + math.exp(-logit)), 4))
        return path

    def market(self) -> Market:
        rows = [_row(name, path[0], path[-1]) for name, path in self.prices.items()]
        for name, path in self.odds.items():
            rows.append(_row(name, path[0], path[-1], self.texts[name], self.chance.choice(["YES", "NO", None])))
        paths = [Path(name, self.moments, path) for name, path in (*self.prices.items(), *self.odds.items())]
        known = {name: Question(text, None) for name, text in self.texts.items()}
        return Market(rows, paths, known)

    def run(self, name: str, steps: int = 3) -> tuple[UsableTrajectory, dict[int, list]]:
        """A run, and what its agent was shown beside the prompts, by step."""
        chance, made, beside = self.chance, [], {}
        cash, pnl = round(chance.uniform(200, 5000), 2), round(chance.gauss(0, 50), 2)
        for number, minute in enumerate(sorted(chance.sample(range(1, 50), steps))):
            moment = self.start + timedelta(minutes=minute, seconds=chance.randrange(1, 59))
            text, data = self.prompt(minute, moment, cash, pnl)
            call = LLMCall(
                model="m", system_prompt="You are a trader. Answer in JSON. 100% effort, at most 3 actions.",
                user_prompt=text, response='{"action": "hold"}', temperature=0.7, max_tokens=512, purpose="action",
            )  # fmt: skip
            beside[number] = [[{"providerName": "market", "data": data, "purpose": "state"}]]
            pnl_after = round(pnl + chance.gauss(0, 8), 2)
            result = {"pnl": round(pnl_after - pnl, 2), "entryPrice": self.prices["TICK1"][minute]}
            made.append(
                Step(
                    step_number=number, timestamp=ms(moment), llm_calls=[call], provider_accesses=[],
                    environment_state={"agentBalance": cash, "agentPnL": pnl, "openPositions": 3}, reward=0.0,
                    action=Action(action_type="TRADING_DECISION", parameters={}, success=True, result=result),
                )
            )  # fmt: skip
            cash, pnl = round(cash - chance.uniform(5, 50), 2), pnl_after
        end = moment + timedelta(seconds=40)
        return _run(name, self.window_id, made, pnl, cash, end), beside

    def prompt(self, minute: int, moment: datetime, cash: float, pnl: float) -> tuple[str, dict]:
        """The text, and the figures that the application keeps of what it showed."""
        chance = self.chance
        shown = {
            name: {"price": path[minute], "change24h": round(chance.gauss(0, 3), 2), "volume": chance.randrange(10**5)}
            for name, path in self.prices.items()
        }
        lines = [f"Current time: {moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"]
        lines += [f"Balance: ${cash:,.2f}. Lifetime P&L: {pnl:+.2f}. Reputation: {chance.randrange(2000)} points.", ""]
        lines += [
            f"- ${name}: ${one['price']:.2f} (24h: {one['change24h']:+.2f}%), volume {one['volume']:,}"
            for name, one in shown.items()
        ]
        held, positions = chance.sample(sorted(self.prices), 3), []
        for name in held:
            paid = round(self.prices[name][0] * math.exp(chance.gauss(0, 0.02)), 2)
            now, size = self.prices[name][minute], round(chance.uniform(10, 500), 2)
            positions.append({"ticker": name, "entryPrice": paid, "currentPrice": now, "size": size})
            lines.append(
                f"  long {name}: size ${size:.2f}, entry ${paid:.2f}, now ${now:.2f}, unrealized {now / paid - 1:+.2%}"
            )
        lines.append(json.dumps({"positions": positions, "asOf": ms(moment)}))
        for name, path in self.odds.items():
            yes = path[minute]
            lines.append(f"[{name}] {self.texts[name]} YES {yes:.0%} / NO {1 - yes:.0%}. Resolves YES if it does.")
            lines.append(json.dumps({"id": name, "resolved": False, "yesPrice": yes, "endDate": ms(moment) + 10**9}))
        one, other, asked = chance.choice(held), chance.choice(sorted(self.prices)), chance.choice(sorted(self.odds))
        posts = [
            f"@user{chance.randrange(900)}: {one} to {chance.randrange(1, 90) * 10} by Friday!",
            f"@user{chance.randrange(900)}: {other} was up {chance.randrange(1, 9)} % today.",
            f"@user{chance.randrange(900)}: [{asked}] I'd say {chance.randrange(1, 20) * 5} %.",
            f"@user{chance.randrange(900)}: sold {chance.randrange(5, 90)} shares of {one}, lost 12.5 %.",
        ]
        lines += ["Recent posts:", *chance.sample(posts, 3), "Answer yes or no, and with a size below $100."]
        return "\n".join(lines), {"tickers": shown, "positions": positions, "posts": posts}


def altered(run: UsableTrajectory, call: LLMCall, at: int | None = None) -> UsableTrajectory:
    """The run with another call in its first step, which was taken at another time."""
    first, *others = run.steps
    step = msgspec.structs.replace(first, llm_calls=[call], timestamp=first.timestamp if at is None else at)
    return msgspec.structs.replace(run, steps=[step, *others])


def asked(run: UsableTrajectory, text: str, at: int) -> UsableTrajectory:
    """The run, had it been asked that at the time (epoch milliseconds)."""
    (call,) = run.steps[0].llm_calls
    return altered(run, msgspec.structs.replace(call, user_prompt=text), at)
