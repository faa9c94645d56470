-- How long workers were there, sampled by billing: what an idle engine costs can be told from what it earned.
CREATE TABLE worker_hourly (
    hour           timestamptz NOT NULL,
    model          text NOT NULL,
    worker_seconds numeric NOT NULL,               -- of all the model's workers together
    PRIMARY KEY (hour, model)
);
