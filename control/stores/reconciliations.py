"""Reports of reconciliation runs that billing wrote to Postgres."""

from control.stores.database import Database

_LATEST = "SELECT report FROM reconciliations ORDER BY id DESC LIMIT 1"


class ReconciliationStore(Database):
    """Every query has a deadline."""

    async def latest(self) -> str | None:
        """The last run's report in protobuf's JSON; None before the first run."""
        async with self._connection() as connection:
            report: str | None = await connection.fetchval(_LATEST)
            return report
