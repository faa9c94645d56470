"""The numbers of migrations."""

import pytest

from authz.store import SCHEMA_VERSION as AUTHZ_NEEDS
from billing.store import SCHEMA_VERSION as BILLING_NEEDS
from control.schema import SchemaError, migrations


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
