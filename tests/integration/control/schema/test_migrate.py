"""Migrations and the first keys, on a real Postgres."""

import asyncio
import dataclasses
import json
import stat

import asyncpg
import pytest

from control.bootstrap import bootstrap
from control.schema.migrate import Migration, SchemaError, migrate, migrations
from credentials import api_keys

PEPPER = b"pepper"
PEPPERS = {"1": PEPPER}


@pytest.fixture
async def connection(postgres_database):
    made = await asyncpg.connect(postgres_database)
    yield made
    await made.close()


async def shape(connection):
    columns = await connection.fetch(
        "SELECT table_name, column_name, data_type FROM information_schema.columns"
        " WHERE table_schema = 'public' ORDER BY 1, ordinal_position"
    )
    return [tuple(column) for column in columns]


async def test_migrating_twice_is_migrating_once(connection):
    newest = len(migrations())
    assert await migrate(connection) == newest
    before = await shape(connection)
    assert await migrate(connection) == newest
    assert await shape(connection) == before
    assert {"accounts", "keys", "usage_events", "usage_hourly", "balances", "prices"} <= {row[0] for row in before}


async def test_many_processes_may_migrate_at_once(connection, postgres_database):
    async def one():
        mine = await asyncpg.connect(postgres_database)
        try:
            return await migrate(mine)
        finally:
            await mine.close()

    assert set(await asyncio.gather(*(one() for _ in range(6)))) == {len(migrations())}
    assert await connection.fetchval("SELECT count(*) FROM schema_version") == len(migrations())


async def test_a_failing_step_leaves_the_database_untouched(connection):
    steps = [Migration(1, "good", "CREATE TABLE good (id int)"), Migration(2, "bad", "CREATE TABLE bad (id nothing)")]
    with pytest.raises(asyncpg.UndefinedObjectError):
        await migrate(connection, steps)
    assert await shape(connection) == []
    assert await migrate(connection, steps[:1]) == 1


async def test_a_step_changed_after_it_was_applied_is_refused(connection):
    await migrate(connection, [Migration(1, "one", "CREATE TABLE one (id int)")])
    with pytest.raises(SchemaError, match="0001_one was changed"):
        await migrate(connection, [Migration(1, "one", "CREATE TABLE one (id bigint)")])


async def test_a_database_newer_than_this_program_is_left_alone(connection):
    await migrate(connection)
    assert await migrate(connection, migrations()[:1]) == len(migrations())


async def test_limits_of_before_become_limits_of_now(connection):
    await migrate(connection, migrations()[:2])
    await connection.execute(
        "INSERT INTO accounts (id, name, requests_per_minute, token_budget)"
        " VALUES ('both', '', 60, 1000), ('one', '', NULL, 0), ('none', '', NULL, NULL)"
    )
    await connection.execute(
        "INSERT INTO keys (id, account, scopes, requests_per_minute, digest, pepper_id, last_four)"
        " VALUES ('key', 'both', '{inference}', 5, sha256(''), '1', 'last')"
    )
    await migrate(connection)
    per_minute = {"measure": "requests", "period": "minute", "amount": 60}
    budget = {"measure": "tokens", "period": "life", "amount": 1000}
    accounts = {row["id"]: json.loads(row["limits"]) for row in await connection.fetch("SELECT * FROM accounts")}
    assert accounts == {"both": [per_minute, budget], "one": [budget | {"amount": 0}], "none": []}
    (key,) = await connection.fetch("SELECT * FROM keys")
    assert json.loads(key["limits"]) == [per_minute | {"amount": 5}]


async def start(connection, file, peppers=PEPPERS):
    await bootstrap(connection, file, peppers=peppers, environment="local")
    return json.loads(file.read_text())


async def test_the_first_keys_are_written_once_and_work(connection, tmp_path):
    await migrate(connection)
    file = tmp_path / "keys.json"
    first = await start(connection, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert set(first) == {"api_key", "admin_key", "api_key_id", "admin_key_id"}
    for name, scope in (("api_key", "inference"), ("admin_key", "admin")):
        row = await connection.fetchrow("SELECT * FROM keys WHERE id = $1", first[f"{name}_id"])
        assert row["digest"] == api_keys.digest(api_keys.parse(first[name]).secret, PEPPER)
        assert (row["account"], row["scopes"]) == ("default", [scope])
    assert await start(connection, file) == first
    assert await connection.fetchval("SELECT count(*) FROM keys") == 2
    assert list(tmp_path.iterdir()) == [file]


async def test_first_keys_that_no_longer_work_are_replaced_alone(connection, tmp_path):
    await migrate(connection)
    file = tmp_path / "keys.json"
    first = await start(connection, file)
    await connection.execute("UPDATE keys SET state = 'revoked' WHERE id = $1", first["api_key_id"])
    second = await start(connection, file)
    assert second["api_key"] != first["api_key"]
    assert second["admin_key"] == first["admin_key"]
    file.write_text("{broken")
    third = await start(connection, file)
    assert await start(connection, file, peppers={"2": b"another", **PEPPERS}) == third
    fourth = await start(connection, file, peppers={"2": b"another"})
    assert len({first["admin_key"], third["admin_key"], fourth["admin_key"]}) == 3


async def test_control_bootstraps_at_its_start_even_twice_at_once(settings, start_control, tmp_path, database):
    chosen = dataclasses.replace(settings, bootstrap_file=tmp_path / "keys.json")
    async with start_control(chosen):
        content = json.loads((tmp_path / "keys.json").read_text())
    async with start_control(chosen):
        assert json.loads((tmp_path / "keys.json").read_text()) == content
    assert await database.fetchval("SELECT count(*) FROM keys") == 2
