-- What was counted and what it costs. Written by billing alone, read by control and authz.

-- One row per UsageEvent. `month` is part of the key because partitioned tables need it there; it is the month of the
-- ticket (UsageEvent.ticket_time), which is the same in every event of an attempt, whoever wrote it, so a duplicate
-- always meets its twin. Months are dropped as a whole when their time is over; the rollups stay.
CREATE TABLE usage_events (
    request_id          text NOT NULL,
    attempt             integer NOT NULL,
    month               date NOT NULL,
    account             text NOT NULL,
    key                 text NOT NULL,
    model               text NOT NULL,             -- as the client called it; '' when it named none
    model_served        text NOT NULL,             -- '' when none answered
    model_revision      bigint NOT NULL,
    provider            text NOT NULL,
    lane                text NOT NULL,
    tier                text NOT NULL,
    operation           text NOT NULL,
    status              text NOT NULL,             -- AttemptStatus, such as 'completed'
    finish_reason       text NOT NULL,             -- FinishReason, such as 'stop'; '' when the first choice did not end
    error_reason        text NOT NULL,
    input_tokens        bigint NOT NULL,           -- cached ones included
    cached_tokens       bigint NOT NULL,
    output_tokens       bigint NOT NULL,           -- reasoning ones included
    reasoning_tokens    bigint NOT NULL,
    queue_seconds       double precision,          -- null: no engine took it
    first_token_seconds double precision,          -- null: there was none
    duration_seconds    double precision,
    end_time            timestamptz NOT NULL,
    last                boolean NOT NULL,
    reservation         text NOT NULL,
    price_version       bigint,                    -- null: the model had no price, and the cost is unknown, not 0
    cost                numeric,
    currency            text,
    record_time         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (request_id, attempt, month)
) PARTITION BY RANGE (month);

-- Makes a month's partition if it is missing. Call it in a transaction of its own: it locks the whole ledger for a moment.
CREATE FUNCTION ensure_usage_partition(first_day date) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    partition text := 'usage_events_' || to_char(first_day, 'YYYY_MM');
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('uplion usage partition'));
    IF to_regclass(partition) IS NULL THEN
        EXECUTE format(
            'CREATE TABLE %I PARTITION OF usage_events FOR VALUES FROM (%L) TO (%L)',
            partition, first_day, (first_day + interval '1 month')::date
        );
    END IF;
END
$$;

-- Sums by hour of the event's end. `currency` is '' for what had no price, so that sums never mix two currencies.
CREATE TABLE usage_hourly (
    hour             timestamptz NOT NULL,
    account          text NOT NULL,
    key              text NOT NULL,
    model            text NOT NULL,                -- the one that served, or else the one that was asked for
    currency         text NOT NULL,
    requests         bigint NOT NULL,
    input_tokens     bigint NOT NULL,
    cached_tokens    bigint NOT NULL,
    output_tokens    bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    cost             numeric NOT NULL,
    PRIMARY KEY (hour, account, key, model, currency)
);
CREATE INDEX usage_hourly_by_account ON usage_hourly (account, hour);

-- Lifetime totals of each key, and of each account under the key ''. They only grow; Valkey's `used` counters are
-- raised to them (max), so settling twice or in any order changes nothing.
CREATE TABLE balances (
    account     text NOT NULL,
    key         text NOT NULL,                     -- '' is the account's total
    tokens      bigint NOT NULL,                   -- input and output
    requests    bigint NOT NULL,
    update_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account, key)
);

-- Lifetime money, beside the tokens because it comes in several currencies.
CREATE TABLE spending (
    account  text NOT NULL,
    key      text NOT NULL,                        -- '' is the account's total
    currency text NOT NULL,
    cost     numeric NOT NULL,
    PRIMARY KEY (account, key, currency)
);

-- A change of price is a new row; rows are never changed, so every ledger row can name the version it was priced with.
-- The row that counts is the latest effective_from not after the event's end, and among equals the highest version.
CREATE TABLE prices (
    version                   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model                     text NOT NULL,
    effective_from            timestamptz NOT NULL,
    currency                  text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    input_per_million_tokens  numeric(24, 12) NOT NULL CHECK (input_per_million_tokens >= 0),
    cached_per_million_tokens numeric(24, 12) CHECK (cached_per_million_tokens >= 0),  -- null: as other input
    output_per_million_tokens numeric(24, 12) NOT NULL CHECK (output_per_million_tokens >= 0),
    per_request               numeric(24, 12) NOT NULL DEFAULT 0 CHECK (per_request >= 0),
    create_time               timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX prices_by_model ON prices (model, effective_from);
