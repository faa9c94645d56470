-- What somebody should know about money: written by billing, once for each subject and period.
CREATE TABLE alerts (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        text NOT NULL CHECK (kind IN ('budget', 'anomaly', 'unpriced', 'lag', 'dead')),
    level       text NOT NULL CHECK (level IN ('warning', 'critical')),
    account     text NOT NULL,                     -- '' when it is the platform's
    subject     text NOT NULL,                     -- what it is about, such as 'a/tokens/month/1000/80'
    period      text NOT NULL,                     -- '2026-11-21T14', '2026-11-21', '2026-11', 'life'
    message     text NOT NULL,                     -- a sentence for people
    facts       jsonb NOT NULL,                    -- the numbers in it, for programs
    create_time timestamptz NOT NULL DEFAULT now(),
    UNIQUE (kind, account, subject, period)
);
CREATE INDEX alerts_by_account ON alerts (account, id);

-- Alerts that the webhook has not taken yet.
CREATE TABLE alert_outbox (
    alert     bigint PRIMARY KEY REFERENCES alerts (id) ON DELETE CASCADE,
    tries     integer NOT NULL DEFAULT 0,
    next_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX alert_outbox_by_time ON alert_outbox (next_time);
