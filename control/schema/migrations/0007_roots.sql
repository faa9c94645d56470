-- What makes a rewritten chain visible: once a day the heads of all accounts' chains go into one hash, and that is signed.

-- The public halves of the keys that signed, for those who verify; the secret one is billing's setting.
CREATE TABLE ledger_keys (
    key_id      text PRIMARY KEY,
    public_key  bytea NOT NULL CHECK (octet_length(public_key) = 32),
    create_time timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE ledger_roots (
    day         date PRIMARY KEY,                  -- UTC; it was over when this was made
    root        bytea NOT NULL CHECK (octet_length(root) = 32),
    accounts    integer NOT NULL,                  -- chains in it: all that had begun
    previous    bytea NOT NULL CHECK (octet_length(previous) = 32),  -- the root of the day before; 32 zero bytes: none
    signature   bytea NOT NULL CHECK (octet_length(signature) = 64),
    key_id      text NOT NULL REFERENCES ledger_keys (key_id),
    create_time timestamptz NOT NULL DEFAULT now()
);
CREATE TRIGGER ledger_roots_never_change BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_roots
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
