-- When who an account is was erased; null: it was not. What is left of it is its id, and what was counted under that.
ALTER TABLE accounts ADD COLUMN erase_time timestamptz;
