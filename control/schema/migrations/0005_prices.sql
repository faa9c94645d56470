-- Prices are written over the admin API.
ALTER TABLE prices ADD COLUMN request_id text UNIQUE;              -- makes a retried CreatePrice safe; null: no promise

-- With the price and the policy of what they sum, rollups also say what each class of tokens cost, exactly and for ever:
-- tokens x rates, nothing where it was waived, and what is left of the cost are requests' own prices.
ALTER TABLE usage_hourly
    ADD COLUMN price_version bigint NOT NULL DEFAULT 0,            -- 0: none, or older than this column
    ADD COLUMN policy        text NOT NULL DEFAULT '',             -- as in usage_events
    DROP CONSTRAINT usage_hourly_pkey,
    ADD PRIMARY KEY (hour, account, project, key, model, tier, currency, price_version, policy);
