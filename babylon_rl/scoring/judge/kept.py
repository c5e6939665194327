"""Answers that judges gave, kept in `judge_answers`: what was asked once is not paid for twice."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from babylon_rl.database.connect import Database


class KeptAnswer(NamedTuple):
    """A row of `judge_answers`: an answer that could be read, by the digest of everything that was asked."""

    digest: str
    window_id: str
    model: str
    question: str
    answer: str
    prompt_tokens: int
    completion_tokens: int


class KeptAnswers:
    """The answers in a database; without one they are kept as long as this object is."""

    def __init__(self, database: Database | None) -> None:
        self._database = database
        self._own: dict[str, str] = {}

    def find(self, digests: Sequence[str]) -> dict[str, str]:
        """Answers by digest, of those that are known."""
        if self._database is None:
            return {digest: self._own[digest] for digest in digests if digest in self._own}
        with self._database.connect() as connection:
            query = "SELECT digest, answer FROM babylon_rl.judge_answers WHERE digest = ANY(%s)"
            return dict(connection.execute(query, (list(digests),)).fetchall())

    def keep(self, answers: Iterable[KeptAnswer]) -> None:
        """Keep the answers; one whose digest is known already stays as it is."""
        rows = list(answers)
        self._own.update((row.digest, row.answer) for row in rows if self._database is None)
        if self._database is None or not rows:
            return
        query = """
            INSERT INTO babylon_rl.judge_answers
                (digest, window_id, model, question, answer, prompt_tokens, completion_tokens)
            VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (digest) DO NOTHING
        """
        with self._database.connect() as connection, connection.cursor() as cursor:
            cursor.executemany(query, rows)
