"""The numbers of migrations."""

import pytest

from authz.store import SCHEMA_VERSION as AUTHZ_NEEDS
from billing.store import SCHEMA_VERSION as BILLING_NEEDS
from control.schema.migrate import SchemaError, migrations

RELEASED = {
    1: "74d5e63cedcf",
    2: "10fff5af2901",
    3: "ab7081184bdd",
    4: "37bc7dc011a5",
    5: "b33052924124",
    6: "8128ae0b3b87",
    7: "4b03771db671",
    8: "295cf9f74a1d",
    9: "da0d5504e8a5",
    10: "0c27cc1913d2",
    11: "eaec20b0a1d4",
}


def test_the_newest_schema_serves_everybody():
    newest = migrations()[-1].version
    assert max(AUTHZ_NEEDS, BILLING_NEEDS) <= newest


@pytest.mark.parametrize(
    "names", [["0002_b.sql"], ["0001_a.sql", "0003_c.sql"], ["1_a.sql"], ["0001_a.sql", "0001_b.sql"]]
)
def test_a_gap_or_a_double_number_is_found(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("SELECT 1")
    with pytest.raises(SchemaError):
        migrations(tmp_path)


def test_released_migrations_keep_their_checksums():
    """A database that applied one refuses to start with another text under its number, comments included."""
    released = {step.version: step.checksum[:12] for step in migrations()[:11]}
    assert released == RELEASED
