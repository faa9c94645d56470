-- What billing found when it compared everything that counts: billing/reconcile.py.
CREATE TABLE reconciliations (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_time        timestamptz NOT NULL,
    stream_sequence bigint NOT NULL,                               -- of USAGE, up to which every event is in the ledger
    differences     integer NOT NULL,
    report          jsonb NOT NULL                                 -- uplion.billing.v1.Reconciliation
);

-- For the rows of the last hours; a few pages in all, since rows come in the order of their end.
CREATE INDEX usage_events_by_end ON usage_events USING brin (end_time);
