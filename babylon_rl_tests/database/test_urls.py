"""URLs name the right driver, keep what libpq needs and show no password."""

import pytest
from sqlalchemy.engine import make_url

from babylon_rl.database.urls import (
    database_name,
    libpq_url,
    pooled,
    redacted,
    schema_of,
    with_driver,
    without_password,
)
from babylon_rl.errors import DatabaseError


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg", "postgresql+asyncpg"])
def test_any_postgresql_url_gets_the_driver_that_was_asked_for(scheme):
    url = f"{scheme}://u:p%40ss@host:5433/name?sslmode=require"
    assert with_driver(url, "psycopg2") == "postgresql+psycopg2://u:p%40ss@host:5433/name?sslmode=require"
    assert with_driver(url, "psycopg").startswith("postgresql+psycopg://")
    assert libpq_url(url) == "postgresql://u:p%40ss@host:5433/name?sslmode=require"


def test_prismas_parameters_are_dropped_and_told_apart():
    assert libpq_url("postgresql://h/n?schema=public&connection_limit=5&pgbouncer=true") == "postgresql://h/n"
    assert schema_of("postgresql://h/n?schema=game") == "game" and schema_of("postgresql://h/n") == "public"
    assert pooled("postgres://h/n?pgbouncer=true") and not pooled("postgres://h/n?connection_limit=5")


def test_no_password_is_shown():
    assert "secret" not in redacted("postgres://u:secret@h/n?sslpassword=secret&sslmode=require")
    assert "secret" not in redacted("postgres://u:secret@h:nonsense/n")


def test_a_password_is_taken_out_of_a_url_and_the_rest_stays():
    assert without_password("postgres://u:p%40ss@h:5433/n?sslmode=require") == (
        "postgresql://u@h:5433/n?sslmode=require",
        "p@ss",
    )
    assert without_password("postgres://u@h/n?password=secret") == ("postgresql://u@h/n", "secret")
    assert without_password("postgres://u@h/n") == ("postgresql://u@h/n", None)
    with pytest.raises(DatabaseError, match="sslpassword") as refused:
        without_password("postgres://u@h/n?sslpassword=secret")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:secret@h/n",
        "secret",
        "postgres://u:secret@h:port/n",
        "",
        "postgres://u:p@secret@h:5432/n",
        "postgres://u:p@w/secret@h/n?schema=game",
        "postgres://u:p@w?secret@h/n",
        "postgres://u:p@w#secret=1@h/n",
    ],
)
def test_what_is_no_postgresql_url_is_refused_without_showing_it(url):
    with pytest.raises(DatabaseError) as refused:
        with_driver(url, "psycopg")
    assert "secret" not in str(refused.value) + redacted(url)


def test_an_at_sign_that_is_no_passwords_is_none_of_its_end():
    url = "postgresql://name@server:p%40ss@h/n?options=a@b"
    assert make_url(libpq_url(url)).host == "h" and make_url(libpq_url(url)).username == "name@server"


def test_the_database_of_a_url_is_known():
    assert database_name("postgresql://postgres@/babylon?host=/a/b&port=5432") == "babylon"
