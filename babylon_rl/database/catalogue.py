"""What the application's database is: its server, role and schema, its tables and columns, and which may be read.

From the system catalogue only, which every role may read: nothing here fails for a right that is missing, and nothing
is written.
"""

from collections.abc import Mapping, Sequence

import msgspec
import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from babylon_rl.database.application_tables import application_metadata, position

# The columns that are read, by table; their types are those of `application_tables`.
READ: Mapping[str, tuple[str, ...]] = {
    "trajectories": (
        *("id", "trajectoryId", "agentId", "startTime", "endTime", "windowId", "scenarioId", "stepsJson"),
        *("finalStatus", "finalBalance", "finalPnL", "totalReward"),
        *("isTrainingData", "isEvaluation", "usedInTraining"),
    ),
    "User": ("id",),
    "llm_call_logs": (
        *("trajectoryId", "stepId", "callId", "timestamp", "model", "purpose", "actionType", "systemPrompt"),
        *("userPrompt", "response", "reasoning", "temperature", "maxTokens", "latencyMs"),
    ),
    "StockPrice": ("id", "organizationId", "price", "timestamp"),
    "Organization": ("id", "name"),
    "PredictionPriceHistory": ("id", "marketId", "yesPrice", "createdAt"),
    "Market": ("id", "question", "yesShares", "noShares", "resolved", "resolution", "endDate", "updatedAt"),
    "PerpPosition": (
        *("id", "ticker", "organizationId", "entryPrice", "currentPrice", "openedAt", "lastUpdated", "closedAt"),
    ),
    "Position": ("id", "marketId", "side", "avgPrice", "createdAt", "updatedAt"),
    "market_outcomes": (
        *("id", "windowId", "stockTicker", "startPrice", "endPrice", "predictionMarketId", "question", "outcome"),
        *("finalProbability", "createdAt"),
    ),
}
# Without it there is nothing to read. Where another is missing, less is known.
REQUIRED = ("trajectories",)
PURPOSE: Mapping[str, str] = {
    "trajectories": "what agents did",
    "User": "which agents there are",
    "llm_call_logs": "text of steps whose llmCalls is empty",
    "StockPrice": "prices of tickers",
    "Organization": "names of tickers",
    "PredictionPriceHistory": "probabilities of questions",
    "Market": "questions and how they resolved",
    "PerpPosition": "prices where StockPrice has none",
    "Position": "probabilities where history has none",
    "market_outcomes": "outcomes where no price is known",
}
# What somebody ran of the first system's migrations.
FIRST_SYSTEM = (
    *("training_windows", "ruler_scores", "training_runs", "training_datasets", "training_jobs"),
    *("training_metrics", "pipeline_logs", "model_deployments"),
)
PRISMA = "_prisma_migrations"

_FAMILIES = {
    **dict.fromkeys(("text", "varchar", "bpchar", "citext", "name"), "text"),
    **dict.fromkeys(("int2", "int4", "int8"), "integer"),
    **dict.fromkeys(("float4", "float8"), "double precision"),
    "numeric": "numeric",
    "bool": "boolean",
    "timestamp": "timestamp without time zone",
}
# What is read alike: a number is cast where it is read.
_AS_GOOD = {"double precision": ("numeric", "integer"), "numeric": ("double precision", "integer")}


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """Who is connected to what. `schema`: the first of the search path that is there and may be used; None: none."""

    version: str
    major: int
    database: str
    role: str
    schema: str | None
    search_path: str
    may_create_schema: bool
    our_schema: bool


class Difference(msgspec.Struct, frozen=True):
    """A column whose type is not the one that Prisma gives it."""

    column: str
    found: str
    expected: str


class TableFound(msgspec.Struct, frozen=True, kw_only=True):
    """One of the tables that are read. `elsewhere`: schemas outside the search path that hold one of its name.

    `unreadable`: needed columns that are there and may not be selected. `snake_case`: add-on columns, which nothing
    reads. `row_security`: policies decide which rows our role sees.
    """

    table: str
    present: bool
    elsewhere: list[str]
    readable: bool
    unreadable: list[str]
    insertable: bool
    missing: list[str]
    differs: list[Difference]
    snake_case: list[str]
    row_security: bool

    @property
    def usable(self) -> bool:
        """Whether every column that is read is there, of its type, and may be selected."""
        return self.present and self.readable and not self.missing and not self.differs


class Catalogue(msgspec.Struct, frozen=True, kw_only=True):
    """The tables that are read, in the order of `READ`, and what else was noticed."""

    tables: list[TableFound]
    prisma: bool
    first_system: list[str]

    def table(self, name: str) -> TableFound:
        """The table of that name."""
        return next(table for table in self.tables if table.table == name)


def server_of(connection: psycopg.Connection) -> Server:
    """The server, the role and the schema of a connection."""
    row = connection.execute(
        """SELECT current_setting('server_version'), current_setting('server_version_num')::int / 10000,
                  current_database(), current_user, current_schema(), current_setting('search_path'),
                  has_database_privilege(current_database(), 'CREATE'),
                  EXISTS (SELECT FROM pg_namespace WHERE nspname = 'babylon_rl')"""
    ).fetchone()
    assert row is not None
    return Server(**dict(zip(Server.__struct_fields__, row, strict=True)))


_TABLES = """
    SELECT c.relname, n.nspname, pg_table_is_visible(c.oid), has_table_privilege(c.oid, 'INSERT'), c.oid,
           c.relrowsecurity AND row_security_active(c.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relname = ANY(%s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
        AND n.nspname NOT IN ('babylon_rl', 'pg_catalog', 'information_schema')
    ORDER BY c.relname, n.nspname
"""
_COLUMNS = """
    SELECT a.attrelid, a.attname, coalesce(base.typname, t.typname), format_type(a.atttypid, a.atttypmod),
           has_column_privilege(a.attrelid, a.attnum, 'SELECT')
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_type base ON base.oid = nullif(t.typbasetype, 0)
    WHERE a.attrelid = ANY(%s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum
"""


def catalogue_of(connection: psycopg.Connection) -> Catalogue:
    """What of the application's tables a connection finds through its search path."""
    names = [*READ, *FIRST_SYSTEM, PRISMA]
    visible: dict[str, tuple[int, bool, bool]] = {}
    elsewhere: dict[str, list[str]] = {}
    for name, schema, found, insertable, oid, row_security in connection.execute(_TABLES, (names,)):
        if found:
            visible[name] = (oid, insertable, row_security)
        else:
            elsewhere.setdefault(name, []).append(schema)
    oids = [oid for oid, _, _ in visible.values()]
    columns: dict[int, dict[str, tuple[str, str, bool]]] = {oid: {} for oid in oids}
    for oid, name, kind, shown, readable in connection.execute(_COLUMNS, (oids,)):
        columns[oid][name] = (kind, shown, readable)
    tables = [
        _table(name, elsewhere.get(name, []), visible[name][1:], columns[visible[name][0]])
        if name in visible
        else _table(name, elsewhere.get(name, []), (False, False), None)
        for name in READ
    ]
    return Catalogue(
        tables=tables, prisma=PRISMA in visible, first_system=[name for name in FIRST_SYSTEM if name in visible]
    )


def _table(
    name: str, elsewhere: Sequence[str], told: tuple[bool, bool], columns: Mapping[str, tuple[str, str, bool]] | None
) -> TableFound:
    wanted, found = READ[name], columns or {}
    unreadable = [column for column in wanted if column in found and not found[column][2]]
    return TableFound(
        table=name,
        present=columns is not None,
        elsewhere=list(elsewhere),
        readable=columns is not None and not unreadable and any(readable for _, _, readable in found.values()),
        unreadable=unreadable,
        insertable=told[0],
        missing=[column for column in wanted if columns is not None and column not in found],
        differs=[
            Difference(column, shown, expected)
            for column in wanted
            if column in found
            for kind, shown, _ in [found[column]]
            for expected in [_expected(name, column)]
            if _FAMILIES.get(kind, kind) not in (expected, *_AS_GOOD.get(expected, ()))
        ],
        snake_case=[column for column in found if "_" in column] if name == "trajectories" else [],
        row_security=told[1],
    )


def _expected(table: str, column: str) -> str:
    columns = position.c if table == position.name else application_metadata.tables[table].c
    kind = columns[column].type
    families: tuple[tuple[type, str], ...] = (
        (sa.String, "text"),
        (sa.Boolean, "boolean"),
        (sa.Integer, "integer"),
        (sa.Float, "double precision"),
        (sa.Numeric, "numeric"),
        (sa.DateTime, "timestamp without time zone"),
        (JSONB, "jsonb"),
    )
    return next(said for base, said in families if isinstance(kind, base))


def readable_columns(connection: psycopg.Connection, table: str) -> frozenset[str]:
    """Columns of a table (as the search path finds it, or with its schema) that may be selected; none without it."""
    query = """
        SELECT a.attname FROM pg_attribute a
        WHERE a.attrelid = to_regclass(%(table)s) AND a.attnum > 0 AND NOT a.attisdropped
            AND has_column_privilege(a.attrelid, a.attnum, 'SELECT')
    """
    return frozenset(name for (name,) in connection.execute(query, {"table": table}))
