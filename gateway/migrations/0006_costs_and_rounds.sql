-- What jobs may cost, and what schedulers tell of their rounds.

-- Rounds of schedulers

-- What schedulers did, for whoever watches them: added up over all of them, each of which tells it now and then.
CREATE TABLE rounds (
    name         text PRIMARY KEY,
    interval_s   float8 NOT NULL,
    succeeded_at timestamptz,                     -- the last time, of whichever scheduler
    runs         bigint NOT NULL,
    failures     bigint NOT NULL,
    seconds      float8 NOT NULL,                 -- that they took
    told_at      timestamptz NOT NULL
) WITH (fillfactor = 50);

-- What happened, counted: name is one of a few that the code has.
CREATE TABLE tallies (
    name  text PRIMARY KEY,
    value bigint NOT NULL
) WITH (fillfactor = 50);

ALTER TABLE fleet
    ADD COLUMN told_at timestamptz,               -- of the last whole round, give or take ten seconds
    ADD COLUMN alarms text[] NOT NULL DEFAULT '{}',   -- kinds of what the operator must know, as of then
    ADD COLUMN doubt interval NOT NULL DEFAULT '0';   -- how much less the slower clock says, cloud's or database's

-- Money of one job

ALTER TABLE jobs ADD COLUMN max_cost numeric;     -- EUR net that its running may cost; null: any
ALTER TABLE leases ADD COLUMN pays_until timestamptz;   -- so long that is enough on this node; null: for ever
ALTER TABLE budgets ADD COLUMN warned_in date;    -- the month in which it was said that little is left

-- Endpoints that fail

ALTER TABLE callback_endpoints ADD COLUMN failed_at timestamptz;   -- about when, the last time; null: not known
