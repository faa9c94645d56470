-- Account -> project -> key, each with labels, a state and limits. Written by control, read by authz.
--
-- `limits` is a JSON array of common.limits.Limit, the one place that says what a limit may be.

CREATE TABLE projects (
    id          text PRIMARY KEY,
    account     text NOT NULL REFERENCES accounts (id),
    name        text NOT NULL,
    labels      jsonb NOT NULL DEFAULT '{}',
    state       text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'suspended')),
    limits      jsonb NOT NULL DEFAULT '[]',
    request_id  text UNIQUE,                                       -- makes a retried CreateProject safe; null: no promise
    create_time timestamptz NOT NULL DEFAULT now(),
    UNIQUE (account, id)
);
CREATE INDEX projects_by_age ON projects (create_time, id);
CREATE INDEX projects_by_account ON projects (account, create_time, id);

ALTER TABLE accounts
    ADD COLUMN labels jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN limits jsonb NOT NULL DEFAULT '[]';

-- Empty arrays allow everything. `successor` names the key that replaces this one while both still work.
ALTER TABLE keys
    ADD COLUMN project        text,
    ADD COLUMN labels         jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN limits         jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN models         text[] NOT NULL DEFAULT '{}',        -- globs of model names
    ADD COLUMN tiers          text[] NOT NULL DEFAULT '{}',
    ADD COLUMN networks       cidr[] NOT NULL DEFAULT '{}',        -- where its clients are
    ADD COLUMN successor      text REFERENCES keys (id) ON DELETE SET NULL,
    ADD COLUMN last_used_time timestamptz,                         -- to about a minute
    ADD FOREIGN KEY (account, project) REFERENCES projects (account, id);
CREATE INDEX keys_by_project ON keys (project) WHERE project IS NOT NULL;

UPDATE accounts SET limits = jsonb_build_array(
    CASE WHEN requests_per_minute IS NOT NULL
         THEN jsonb_build_object('measure', 'requests', 'period', 'minute', 'amount', requests_per_minute) END,
    CASE WHEN token_budget IS NOT NULL
         THEN jsonb_build_object('measure', 'tokens', 'period', 'life', 'amount', token_budget) END);
UPDATE keys SET limits = jsonb_build_array(
    CASE WHEN requests_per_minute IS NOT NULL
         THEN jsonb_build_object('measure', 'requests', 'period', 'minute', 'amount', requests_per_minute) END,
    CASE WHEN token_budget IS NOT NULL
         THEN jsonb_build_object('measure', 'tokens', 'period', 'life', 'amount', token_budget) END);
UPDATE accounts SET limits = jsonb_path_query_array(limits, '$[*] ? (@ != null)');
UPDATE keys SET limits = jsonb_path_query_array(limits, '$[*] ? (@ != null)');
