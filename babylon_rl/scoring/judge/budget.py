"""What judging costs: estimated before a judge is asked, counted after, and stopped where a run's budget ends.

An estimate is meant to be too high. Byte-level tokenizers make a token of about four letters of English; figures and
signs may be a token each, and of other scripts each byte of UTF-8. So two letters or spaces are counted as a token, and
so is each other byte; of the answer, all that the judge is allowed to write.
"""

import re

from babylon_rl.errors import ScoringError, SettingsError

LETTERS_PER_TOKEN = 2
_LETTERS = re.compile("[A-Za-z ]")
TOKENS_PER_MESSAGE = 16  # what a chat template puts around one


class BudgetError(ScoringError):
    """Judging would cost more than a run may spend."""


def prompt_tokens(text: str) -> int:
    """Tokens of a prompt at most, by the assumption above."""
    others = _LETTERS.sub("", text)
    letters = len(text) - len(others)
    return -(-letters // LETTERS_PER_TOKEN) + len(others.encode()) + TOKENS_PER_MESSAGE


class Prices:
    """Dollars a million tokens of prompt and answer."""

    def __init__(self, told: str) -> None:
        """`told`: "0.40/1.60", or nothing. SettingsError where it is something else."""
        self.known = bool(told.strip())
        self._prompt = self._completion = 0.0
        if not self.known:
            return
        try:
            self._prompt, self._completion = (float(part) for part in told.split("/"))
        except ValueError:
            self._prompt = -1.0
        if not (0 <= self._prompt < 1e6 and 0 <= self._completion < 1e6):
            raise SettingsError(
                f"BABYLON_RL_JUDGE_PRICES is {told!r}; write dollars a million tokens, input/output, as in 0.40/1.60."
            )

    def dollars(self, prompt: int, completion: int) -> float | None:
        """What so many tokens cost; None where the prices are not known."""
        return (prompt * self._prompt + completion * self._completion) / 1e6 if self.known else None


class Budget:
    """Tokens that one run may spend on its judge, and what it has spent."""

    def __init__(self, limit: int, prices: Prices) -> None:
        self.limit, self.prices = limit, prices
        self.prompt = self.completion = self.calls = 0

    @property
    def spent(self) -> int:
        """Tokens of all prompts and answers so far."""
        return self.prompt + self.completion

    def check(self, prompt: int, completion: int, what: str) -> None:
        """BudgetError where `what` may take more tokens than are left."""
        left = self.limit - self.spent
        if prompt + completion > left:
            raise BudgetError(
                f"{what} may take {prompt + completion:,} tokens{self._cost(prompt, completion)}, and {max(left, 0):,} "
                f"are left: {self.spent:,} of {self.limit:,} are spent{self._cost(self.prompt, self.completion)}. "
                "Raise BABYLON_RL_JUDGE_BUDGET_TOKENS, or judge fewer windows at a time; answers that were given are "
                "kept and cost nothing again."
            )

    def count(self, prompt: int, completion: int) -> None:
        """A call that was answered."""
        self.prompt += prompt
        self.completion += completion
        self.calls += 1

    def _cost(self, prompt: int, completion: int) -> str:
        dollars = self.prices.dollars(prompt, completion)
        return "" if dollars is None else f" (${dollars:,.2f})"
