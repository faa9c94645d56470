-- The ledger in full: projects, budgets by period and model, every price, abnormal ends, and a hash chain that shows
-- tampering. Written by billing alone, but for prices and policies, which control writes.

-- How an account pays for attempts that ended abnormally, where it differs from the defaults in billing/policy.py.
ALTER TABLE accounts ADD COLUMN billing_policy jsonb NOT NULL DEFAULT '{}' CHECK (
    jsonb_typeof(billing_policy) = 'object'
    AND billing_policy - ARRAY['cancelled', 'worker_lost', 'timed_out', 'failed', 'guard_stopped', 'zero_output'] = '{}'
    AND NOT jsonb_path_exists(
        billing_policy, '$.* ? (@.type() != "string" || !(@ == "bill" || @ == "input_only" || @ == "waive"))'
    )
);

ALTER TABLE usage_events
    ADD COLUMN project            text NOT NULL DEFAULT '',        -- '' when the key has none
    ADD COLUMN cache_write_tokens bigint NOT NULL DEFAULT 0,       -- part of input_tokens
    ADD COLUMN compute_seconds    double precision,                -- null: not known; exact to the microsecond
    ADD COLUMN policy             text NOT NULL DEFAULT '',        -- '': billed as measured; else 'input_only', 'waived'
    ADD COLUMN link               bigint;                          -- in ledger_chain; null: older than the chain

ALTER TABLE usage_hourly
    ADD COLUMN project            text NOT NULL DEFAULT '',
    ADD COLUMN tier               text NOT NULL DEFAULT 'default',
    ADD COLUMN cache_write_tokens bigint NOT NULL DEFAULT 0,
    ADD COLUMN compute_seconds    numeric NOT NULL DEFAULT 0,      -- of the events that knew it
    DROP CONSTRAINT usage_hourly_pkey,
    ADD PRIMARY KEY (hour, account, project, key, model, tier, currency);

-- What an account, its projects and its keys used, in all and by model, over their life, by month and by day (of the
-- event's end, UTC). Rows only grow; Valkey's counters are raised to them (max), so settling twice changes nothing.
-- Half of a page's rows are updated in every batch: room for new versions beside the old keeps their indexes still.
ALTER TABLE balances RENAME TO old_balances;
CREATE TABLE balances (
    account     text NOT NULL,
    scope       text NOT NULL,                     -- 'a' (the account), 'p:<project>', 'k:<key>'
    model       text NOT NULL,                     -- as the client asked for it; '' is every model
    period      text NOT NULL,                     -- 'life', '2026-11', '2026-11-21'
    tokens      bigint NOT NULL,                   -- input and output
    requests    bigint NOT NULL,
    update_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account, scope, model, period)
) WITH (fillfactor = 70);

-- The same for money, which comes in several currencies.
ALTER TABLE spending RENAME TO old_spending;
CREATE TABLE spending (
    account  text NOT NULL,
    scope    text NOT NULL,
    model    text NOT NULL,
    period   text NOT NULL,
    currency text NOT NULL,
    cost     numeric NOT NULL,
    PRIMARY KEY (account, scope, model, period, currency)
) WITH (fillfactor = 70);
ALTER TABLE usage_hourly SET (fillfactor = 70);

-- Lifetimes are what they were; months, days and models come from the ledger.
INSERT INTO balances (account, scope, model, period, tokens, requests, update_time)
SELECT account, CASE key WHEN '' THEN 'a' ELSE 'k:' || key END, '', 'life', tokens, requests, update_time
FROM old_balances;
INSERT INTO spending (account, scope, model, period, currency, cost)
SELECT account, CASE key WHEN '' THEN 'a' ELSE 'k:' || key END, '', 'life', currency, cost
FROM old_spending;
DROP TABLE old_balances, old_spending;

CREATE TEMPORARY TABLE ledger_by_period ON COMMIT DROP AS
SELECT account, scope, asked AS model, period, currency, sum(input_tokens + output_tokens)::bigint AS tokens,
       count(*) FILTER (WHERE last) AS requests, sum(cost) AS cost
FROM usage_events,
     LATERAL (VALUES ('a'), ('k:' || key)) scopes (scope),
     LATERAL (SELECT '' UNION SELECT model) models (asked),
     LATERAL (VALUES ('life'), (to_char(end_time AT TIME ZONE 'UTC', 'YYYY-MM')),
                     (to_char(end_time AT TIME ZONE 'UTC', 'YYYY-MM-DD'))) periods (period)
GROUP BY 1, 2, 3, 4, 5;
INSERT INTO balances (account, scope, model, period, tokens, requests)
SELECT account, scope, model, period, sum(tokens), sum(requests) FROM ledger_by_period GROUP BY 1, 2, 3, 4
ON CONFLICT DO NOTHING;
INSERT INTO spending (account, scope, model, period, currency, cost)
SELECT account, scope, model, period, currency, cost FROM ledger_by_period WHERE currency IS NOT NULL
ON CONFLICT DO NOTHING;

ALTER TABLE prices
    ADD COLUMN cache_write_per_million_tokens numeric(24, 12) CHECK (cache_write_per_million_tokens >= 0), -- null: as input
    ADD COLUMN reasoning_per_million_tokens   numeric(24, 12) CHECK (reasoning_per_million_tokens >= 0),   -- null: as output
    ADD COLUMN per_gpu_second                 numeric(24, 12) NOT NULL DEFAULT 0 CHECK (per_gpu_second >= 0);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'rows of % never change: add a new one', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER prices_never_change BEFORE UPDATE OR DELETE OR TRUNCATE ON prices
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- One link for each batch and account with new rows: digest = SHA-256(previous || the rows as billing/chain.py writes
-- them). The first link's `previous` is 32 zero bytes. Links of one account are numbered from 1 without gaps.
CREATE TABLE ledger_chain (
    account     text NOT NULL,
    link        bigint NOT NULL,
    previous    bytea NOT NULL CHECK (octet_length(previous) = 32),
    digest      bytea NOT NULL CHECK (octet_length(digest) = 32),
    rows        integer NOT NULL,
    record_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account, link)
);

-- The last link of each account; its lock is what orders the batches of an account.
CREATE TABLE ledger_heads (
    account text PRIMARY KEY,
    link    bigint NOT NULL DEFAULT 0,             -- 0: none yet
    digest  bytea NOT NULL DEFAULT decode(repeat('00', 32), 'hex')
) WITH (fillfactor = 70);
