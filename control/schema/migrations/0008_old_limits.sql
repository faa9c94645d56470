-- Limits are in `limits` since 0003; nothing reads or writes their older columns any more.
ALTER TABLE accounts DROP COLUMN requests_per_minute, DROP COLUMN token_budget;
ALTER TABLE keys DROP COLUMN requests_per_minute, DROP COLUMN token_budget;
