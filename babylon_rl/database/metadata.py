"""What our tables share: the schema, the MetaData that Alembic reads, column types, how a table keeps history."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

SCHEMA = "babylon_rl"

metadata = sa.MetaData(
    schema=SCHEMA,
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    },
)

Time = sa.DateTime(timezone=True)
Real = sa.Double
# None is SQL NULL, never the JSON value null.
Json = JSONB(none_as_null=True)

# The colon is escaped for SQLAlchemy, to which ":00" is a bind parameter.
WHOLE_HOUR = r"window_id ~ '^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3])\:00$'"


def now(name: str) -> sa.Column:
    return sa.Column(name, Time, nullable=False, server_default=sa.func.now())


def asset_table(name: str, key: tuple[str, ...], *columns: sa.Column, window_required: bool = True) -> sa.Table:
    """Table of a partitioned asset: its own columns, the window, and the columns that keep history.

    `key`: the columns that, with the window, name a row; unique among the current rows.
    """
    return sa.Table(
        name,
        metadata,
        sa.Column("row_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("window_id", sa.Text, nullable=not window_required),
        *columns,
        sa.Column("digest", sa.Text, nullable=False, comment="SHA-256 over the window's rows as written"),
        now("created_at"),
        sa.Column("superseded_at", Time),
        sa.CheckConstraint(WHOLE_HOUR, name="whole_hour"),
        sa.Index(
            f"uq_{name}_current",
            "window_id",
            *key,
            unique=True,
            postgresql_where=sa.text("superseded_at IS NULL"),
            postgresql_nulls_not_distinct=True,
        ),
    )
