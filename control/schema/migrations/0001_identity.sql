-- Who pays and what opens the door. Written by control, read by authz.

CREATE TABLE accounts (
    id                  text PRIMARY KEY,
    name                text NOT NULL,
    state               text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'suspended')),
    requests_per_minute integer CHECK (requests_per_minute >= 0),  -- null: no limit at this level
    token_budget        bigint CHECK (token_budget >= 0),          -- over the whole life; null: no budget
    request_id          text UNIQUE,                               -- makes a retried CreateAccount safe; null: no promise
    create_time         timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX accounts_by_age ON accounts (create_time, id);

-- A key's secret is never here: `digest` is HMAC-SHA-256 of it under the pepper named by `pepper_id`.
CREATE TABLE keys (
    id                  text PRIMARY KEY,                          -- the public part of the key
    account             text NOT NULL REFERENCES accounts (id),
    name                text NOT NULL DEFAULT '',
    state               text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'suspended', 'revoked')),
    scopes              text[] NOT NULL,
    requests_per_minute integer CHECK (requests_per_minute >= 0),
    token_budget        bigint CHECK (token_budget >= 0),
    digest              bytea NOT NULL CHECK (octet_length(digest) = 32),
    pepper_id           text NOT NULL,
    last_four           text NOT NULL,
    request_id          text UNIQUE,                               -- a repeated CreateKey is refused; null: no promise
    create_time         timestamptz NOT NULL DEFAULT now(),
    expire_time         timestamptz                                -- null: never
);
CREATE INDEX keys_by_age ON keys (create_time, id);
CREATE INDEX keys_by_account ON keys (account, create_time, id);
