-- Nodes that buy, fill and delete themselves

-- Servers

-- A purchase, written before the cloud is asked; its id is that of its node. A server is known again by its name, which
-- is used once. Moments are by the cloud's clock, which it bills by. Prices are those read when it was bought.
CREATE TABLE servers (
    node_id        uuid PRIMARY KEY,
    name           text NOT NULL UNIQUE,
    provider       text NOT NULL,
    state          text NOT NULL CHECK (state IN ('planned', 'creating', 'booting', 'ready', 'draining', 'deleting',
                                                  'gone', 'lost', 'failed')),
    type           text NOT NULL,
    location       text NOT NULL,
    architecture   text NOT NULL,
    slots          int NOT NULL CHECK (slots >= 1),
    memory         bigint NOT NULL,
    hourly         numeric NOT NULL,              -- EUR net, server and IPv4 address
    monthly        numeric NOT NULL,
    ipv4_hourly    numeric NOT NULL,              -- the address's part of them
    ipv4_monthly   numeric NOT NULL,
    account_id     bigint,                        -- that it serves alone; null: all
    payer_id       bigint,                        -- the project for whose jobs it was bought
    reason         text NOT NULL,
    token          bytea,                         -- join token, sealed, until the server is known to exist
    tries          int NOT NULL DEFAULT 0,        -- calls that asked for it
    asked_at       timestamptz,                   -- the last of them
    call_after     timestamptz NOT NULL,          -- no call about it before
    planned_at     timestamptz NOT NULL,
    cloud_id       bigint,
    created_at     timestamptz,                   -- hours are counted from here
    ipv4           text,
    seen_at        timestamptz,                   -- in a list of the cloud's, last
    missing        int NOT NULL DEFAULT 0,        -- complete lists in a row without it
    off_since      timestamptz,
    ready_at       timestamptz,
    reserved_until timestamptz NOT NULL,          -- end of the last hour that budgets were charged for
    closed         boolean NOT NULL DEFAULT false,   -- takes no new jobs for now
    boot_failed_at timestamptz,                   -- it never joined
    deleted_at     timestamptz,                   -- the cloud said yes to its deletion
    ended_at       timestamptz,
    error          text,
    CHECK ((state IN ('gone', 'lost', 'failed')) = (ended_at IS NOT NULL))
);
CREATE INDEX servers_live ON servers (node_id) WHERE ended_at IS NULL;
CREATE INDEX servers_ended ON servers (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX servers_boot_failed ON servers (boot_failed_at) WHERE boot_failed_at IS NOT NULL;
CREATE INDEX servers_booted ON servers (ready_at) WHERE ready_at IS NOT NULL;

CREATE TABLE node_events (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    node_id uuid NOT NULL,
    at      timestamptz NOT NULL DEFAULT now(),
    type    text NOT NULL,
    detail  text
);
CREATE INDEX node_events_by_node ON node_events (node_id, id);

-- What schedulers agree on about the fleet. One row; whoever changes the fleet holds its lock and has its epoch.
CREATE TABLE fleet (
    one            boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch          bigint NOT NULL DEFAULT 0,
    holder         uuid,
    leads_until    timestamptz NOT NULL DEFAULT '-infinity',
    frozen_until   timestamptz,                   -- nothing is bought before: the cloud refused, by its clock
    server_limit   int,                           -- of the account, as learned from a refusal
    limit_until    timestamptz,
    listed_at      timestamptz,                   -- the last complete list, by the cloud's clock
    reconciled_at  timestamptz,                   -- the same, by ours
    listed         int NOT NULL DEFAULT 0,
    unknown        int NOT NULL DEFAULT 0,        -- of them without a row
    problem        text,                          -- what the operator must know
    problem_at     timestamptz,
    ahead          interval NOT NULL DEFAULT '0'  -- how much the cloud's clock is ahead of the database's
);
INSERT INTO fleet DEFAULT VALUES;

-- Why the jobs of a project that need so many slots wait for a node: as of the last round.
CREATE TABLE node_waits (
    project_id bigint NOT NULL,
    lane       smallint NOT NULL,
    cls        smallint NOT NULL,
    reason     text NOT NULL,
    eta        timestamptz,
    at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, lane, cls)
);

-- Most nodes that ever were are gone.
CREATE INDEX nodes_present ON nodes (id) WHERE state <> 'gone';

-- Ledger

-- What an attempt filled of its node; null: of an earlier release, one.
ALTER TABLE outcomes ADD COLUMN slots smallint;
ALTER TABLE job_attempts ADD COLUMN slots smallint;
CREATE INDEX outcomes_by_node ON outcomes (node_id, finished_at) WHERE node_id IS NOT NULL;
CREATE INDEX job_attempts_by_node ON job_attempts (node_id, ended_at);

-- An hour of a server: reserved before it begins, counted from the server's creation, settled once it is known to be on
-- the bill and over. Amounts are EUR net, and final then.
CREATE TABLE server_hours (
    node_id    uuid NOT NULL,
    hour       int NOT NULL CHECK (hour >= 0),
    begins_at  timestamptz NOT NULL,              -- by the cloud's clock; of one not settled, as far as is known
    server     numeric NOT NULL CHECK (server >= 0),
    ipv4       numeric NOT NULL CHECK (ipv4 >= 0),
    settled_at timestamptz,
    PRIMARY KEY (node_id, hour)
);
CREATE INDEX server_hours_open ON server_hours (node_id, hour) WHERE settled_at IS NULL;

-- Who pays for an hour if nothing runs in it. Gone when it is settled.
CREATE TABLE reservations (
    node_id    uuid NOT NULL,
    hour       int NOT NULL,
    project_id bigint NOT NULL,
    amount     numeric NOT NULL CHECK (amount >= 0),
    PRIMARY KEY (node_id, hour, project_id),
    FOREIGN KEY (node_id, hour) REFERENCES server_hours ON DELETE CASCADE
);
CREATE INDEX reservations_by_project ON reservations (project_id);

-- What a settled hour cost whom: an attempt that ran in it, or, without a job, a project. They add up to the hour.
CREATE TABLE receipts (
    node_id     uuid NOT NULL,
    hour        int NOT NULL,
    project_id  bigint NOT NULL,                  -- 0: nobody's, the operator's own
    function_id uuid,
    job_id      uuid,
    attempt     int,
    slot_ms     bigint NOT NULL,
    server      numeric NOT NULL,                 -- of the time that it filled
    ipv4        numeric NOT NULL,
    idle        numeric NOT NULL,                 -- of what nobody filled
    CHECK ((job_id IS NULL) = (attempt IS NULL))
);
CREATE INDEX receipts_by_job ON receipts (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX receipts_by_hour ON receipts (node_id, hour);

-- What stays of jobs and receipts. Days are UTC: of a job the day of its end, of an hour that of its beginning.
CREATE TABLE usage_days (
    project_id  bigint NOT NULL,
    day         date NOT NULL,
    function_id uuid NOT NULL,                    -- zero: jobs without one, and hours without jobs
    jobs        bigint NOT NULL DEFAULT 0,
    slot_ms     bigint NOT NULL DEFAULT 0,
    bytes       bigint NOT NULL DEFAULT 0,        -- of outputs
    cost        numeric NOT NULL DEFAULT 0,
    idle        numeric NOT NULL DEFAULT 0,       -- the part of it that nobody filled
    PRIMARY KEY (project_id, day, function_id)
);
CREATE INDEX usage_days_by_day ON usage_days (day);

-- Up to which outcome jobs are counted in usage_days. One row.
CREATE TABLE usage_cursor (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    finished_at timestamptz NOT NULL DEFAULT '-infinity',
    job_id      uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000'
);
INSERT INTO usage_cursor DEFAULT VALUES;

-- EUR (net) that a project may cost in a calendar month (UTC).
CREATE TABLE budgets (
    project_id bigint PRIMARY KEY REFERENCES projects,
    monthly    numeric NOT NULL CHECK (monthly >= 0),
    updated_at timestamptz NOT NULL DEFAULT now()
);
