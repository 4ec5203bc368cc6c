-- Accounts own projects. Every row of a tenant carries its project; every query filters on it.
CREATE TABLE accounts (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    slug       text NOT NULL UNIQUE CHECK (slug ~ '^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$'),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE projects (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id      bigint NOT NULL REFERENCES accounts,
    slug            text NOT NULL UNIQUE CHECK (slug ~ '^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$'),
    callback_secret bytea NOT NULL,           -- whsec_… sealed with RGRID_SECRET_KEY
    created_at      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_keys (
    id         text PRIMARY KEY,              -- the public part of rgk_<id>_<secret>
    project_id bigint NOT NULL REFERENCES projects,
    name       text NOT NULL,
    hash       bytea NOT NULL UNIQUE,         -- SHA-256 of the whole key
    scopes     text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);

CREATE TABLE functions (
    id             uuid PRIMARY KEY,
    project_id     bigint NOT NULL REFERENCES projects,
    name           text NOT NULL CHECK (name ~ '^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$'),
    current_number int NOT NULL CHECK (current_number >= 1),
    description    text NOT NULL DEFAULT '',  -- metadata belongs to the function: a change makes no version
    labels         json NOT NULL DEFAULT '{}',
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    deleted_at     timestamptz
);
CREATE UNIQUE INDEX functions_name ON functions (project_id, name) WHERE deleted_at IS NULL;
CREATE INDEX functions_any_name ON functions (project_id, name, id);
CREATE INDEX functions_newest ON functions (project_id, id DESC) WHERE deleted_at IS NULL;

-- Immutable but for the digest, which the first pull fixes. function_id is null for a job without a function.
CREATE TABLE function_versions (
    id            uuid PRIMARY KEY,
    project_id    bigint NOT NULL REFERENCES projects,
    function_id   uuid REFERENCES functions,
    number        int NOT NULL CHECK (number >= 1),
    manifest      json NOT NULL,              -- normalised: defaults written out
    manifest_hash bytea NOT NULL,
    image_digest  text,
    created_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE (function_id, number)
);

CREATE TABLE nodes (
    id                 uuid PRIMARY KEY,
    account_id         bigint REFERENCES accounts,   -- the account it serves; null: any
    name               text NOT NULL,
    provider           text NOT NULL,
    state              text NOT NULL CHECK (state IN ('joining', 'ready', 'draining', 'gone')),
    slots              int NOT NULL CHECK (slots BETWEEN 1 AND 1024),
    join_hash          bytea UNIQUE,
    join_expires_at    timestamptz,
    credential_hash    bytea UNIQUE,
    agent_version      text,
    facts              json NOT NULL DEFAULT '{}',
    created_at         timestamptz NOT NULL DEFAULT now(),
    joined_at          timestamptz,
    last_seen_at       timestamptz,
    gone_at            timestamptz,
    CHECK ((state = 'joining') = (joined_at IS NULL) OR state = 'gone'),
    CHECK ((state = 'gone') = (gone_at IS NOT NULL))
);

-- The wide row: written once at submit, never updated. No foreign keys here and below: each would lock a shared row.
CREATE TABLE jobs (
    id              uuid PRIMARY KEY,
    project_id      bigint NOT NULL,
    function_id     uuid,
    version_id      uuid NOT NULL,
    trigger         json NOT NULL,
    params          json NOT NULL,
    callback_url    text,
    callback_events text[],
    batch_id        uuid,
    retried_from    uuid,
    traceparent     text,
    key_id          text,                     -- the API key that asked for it; null: the platform itself
    created_at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX jobs_by_project ON jobs (project_id, id DESC);
CREATE INDEX jobs_by_function ON jobs (function_id, id);

-- Fairness: a pool (account) has a virtual clock, a project in it the tag where its sequence has got to.
CREATE TABLE pool_clocks (
    pool bigint PRIMARY KEY,
    v    float8 NOT NULL DEFAULT 0
) WITH (fillfactor = 10);

CREATE TABLE flows (
    project_id bigint PRIMARY KEY,
    pool       bigint NOT NULL,
    f          float8 NOT NULL DEFAULT 0,
    weight     float8 NOT NULL DEFAULT 1 CHECK (weight > 0)
) WITH (fillfactor = 10);

-- What may be claimed now, and only that. A job that is not finished stands in exactly one of ready_jobs, waiting_jobs
-- and leases; a statement that takes it out of one puts it into another or into outcomes.
CREATE TABLE ready_jobs (
    job_id     uuid NOT NULL,
    vt         float8 NOT NULL,               -- virtual start time: the claim order
    pool       bigint NOT NULL,
    project_id bigint NOT NULL,
    lane       smallint NOT NULL DEFAULT 0 CHECK (lane IN (0, 1)),   -- 0 standard, 1 paid
    cls        smallint NOT NULL CHECK (cls BETWEEN 1 AND 1024),     -- slots that it needs
    attempt    int NOT NULL CHECK (attempt >= 0),                    -- attempts made so far
    losses     int NOT NULL CHECK (losses BETWEEN 0 AND attempt),    -- of them, lost with their node
    queued_at  timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);
CREATE UNIQUE INDEX ready_jobs_id ON ready_jobs (project_id, job_id);   -- the project first: its list is in this order
CREATE INDEX ready_jobs_next ON ready_jobs (pool, lane, cls, vt, job_id);

CREATE TABLE waiting_jobs (
    job_id     uuid NOT NULL,
    pool       bigint NOT NULL,
    project_id bigint NOT NULL,
    lane       smallint NOT NULL DEFAULT 0 CHECK (lane IN (0, 1)),
    cls        smallint NOT NULL CHECK (cls BETWEEN 1 AND 1024),
    attempt    int NOT NULL CHECK (attempt >= 0),
    losses     int NOT NULL CHECK (losses BETWEEN 0 AND attempt),
    stage      text NOT NULL CHECK (stage IN ('delayed', 'retry')),
    due_at     timestamptz NOT NULL,
    PRIMARY KEY (project_id, job_id),
    CHECK (stage = 'retry' OR attempt = 0)
);
CREATE INDEX waiting_jobs_due ON waiting_jobs (due_at);

-- No index on expires_at: heartbeats must stay HOT updates.
CREATE TABLE leases (
    job_id           uuid PRIMARY KEY,
    token            uuid NOT NULL,
    node_id          uuid NOT NULL,
    pool             bigint NOT NULL,
    project_id       bigint NOT NULL,
    lane             smallint NOT NULL,
    cls              smallint NOT NULL,
    attempt          int NOT NULL CHECK (attempt >= 1),
    losses           int NOT NULL CHECK (losses BETWEEN 0 AND attempt),
    queued_at        timestamptz NOT NULL,
    leased_at        timestamptz NOT NULL DEFAULT now(),
    expires_at       timestamptz NOT NULL,
    cancel_requested boolean NOT NULL DEFAULT false,
    progress         real CHECK (progress BETWEEN 0 AND 1),
    timeline         json NOT NULL DEFAULT '{}'   -- stage → milliseconds after leased_at
) WITH (fillfactor = 30, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX leases_by_node ON leases (node_id);

-- The one outcome of a job. Its primary key is what "exactly one recorded outcome" rests on.
CREATE TABLE outcomes (
    job_id      uuid PRIMARY KEY,
    project_id  bigint NOT NULL,
    status      text NOT NULL CHECK (status IN ('succeeded', 'failed', 'timed_out', 'cancelled', 'expired')),
    attempt     int NOT NULL CHECK (attempt >= 0),
    losses      int NOT NULL CHECK (losses BETWEEN 0 AND attempt),
    token       uuid,                             -- of the lease that reported it: a repeated report is known by it
    exit_code   int,
    error       json,
    result      json,
    node_id     uuid,
    queued_at   timestamptz,
    leased_at   timestamptz,
    finished_at timestamptz NOT NULL DEFAULT now(),
    timeline    json NOT NULL DEFAULT '{}',
    rejected    json NOT NULL DEFAULT '[]',       -- outputs that the collector refused: [{path, reason}]
    CHECK ((status = 'succeeded') = (error IS NULL) OR status = 'cancelled'),
    CHECK (status <> 'succeeded' OR coalesce(exit_code, 0) = 0),
    CHECK (status NOT IN ('succeeded', 'timed_out') OR attempt >= 1),
    CHECK (status <> 'expired' OR attempt = 0),
    CHECK ((leased_at IS NULL) = (node_id IS NULL)),
    CHECK (leased_at IS NULL OR attempt >= 1)
);
CREATE INDEX outcomes_by_status ON outcomes (project_id, status, job_id DESC);

-- Attempts that were not the last: the last one's record is the outcome's.
CREATE TABLE job_attempts (
    job_id     uuid NOT NULL,
    attempt    int NOT NULL CHECK (attempt >= 1),
    project_id bigint NOT NULL,
    token      uuid NOT NULL,
    node_id    uuid NOT NULL,
    exit_code  int,
    error      json NOT NULL,
    queued_at  timestamptz NOT NULL,
    leased_at  timestamptz NOT NULL,
    ended_at   timestamptz NOT NULL DEFAULT now(),
    next_at    timestamptz NOT NULL,              -- when the next attempt may start
    timeline   json NOT NULL DEFAULT '{}',
    PRIMARY KEY (job_id, attempt)
);

CREATE TABLE idempotency_keys (
    project_id  bigint NOT NULL,
    function_id uuid NOT NULL,
    key         text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    body_hash   bytea NOT NULL,
    job_id      uuid NOT NULL,
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (project_id, function_id, key)
);
CREATE INDEX idempotency_keys_expiry ON idempotency_keys (expires_at);

-- What containers wrote, as it came: chunks laid end to end. position is the byte offset in the attempt's log.
CREATE TABLE log_chunks (
    job_id   uuid NOT NULL,
    attempt  int NOT NULL,
    position bigint NOT NULL CHECK (position >= 0),
    data     bytea NOT NULL CHECK (length(data) > 0),
    at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (job_id, attempt, position)
);

-- A row stands before the upload starts, so that no object in the store is unknown. An attempt's files become visible
-- when its outcome commits.
CREATE TABLE artifacts (
    id           uuid PRIMARY KEY,
    project_id   bigint NOT NULL,
    job_id       uuid,
    attempt      int,
    position     int,                             -- order among the job's outputs
    name         text NOT NULL,
    path         text,
    content_type text NOT NULL,
    size         bigint NOT NULL CHECK (size >= 0),
    sha256       text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    md5          text NOT NULL CHECK (md5 ~ '^[0-9a-f]{32}$'),
    object_key   text NOT NULL UNIQUE,
    link_token   text NOT NULL UNIQUE,
    state        text NOT NULL CHECK (state IN ('pending', 'complete')),
    created_at   timestamptz NOT NULL DEFAULT now(),
    CHECK ((job_id IS NULL) = (attempt IS NULL))
);
CREATE INDEX artifacts_by_job ON artifacts (job_id, attempt, position) WHERE job_id IS NOT NULL;
CREATE INDEX artifacts_pending ON artifacts (created_at) WHERE state = 'pending';

-- One row per (event, endpoint), written in the transaction of what it tells. due_at doubles as the sender's lease.
CREATE TABLE deliveries (
    id          uuid PRIMARY KEY,                 -- the webhook-id, constant over attempts
    project_id  bigint NOT NULL,
    job_id      uuid NOT NULL,
    type        text NOT NULL,
    url         text NOT NULL,
    endpoint    text NOT NULL,                    -- scheme://host:port, what a breaker and a limit count by
    state       text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'exhausted')),
    tries       int NOT NULL DEFAULT 0 CHECK (tries >= 0),
    occurred_at timestamptz NOT NULL DEFAULT now(),
    due_at      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (job_id, type, url)
);
CREATE INDEX deliveries_due ON deliveries (project_id, endpoint, due_at) WHERE state = 'pending';
CREATE INDEX deliveries_by_project ON deliveries (project_id, id DESC);

CREATE TABLE delivery_attempts (
    delivery_id uuid NOT NULL REFERENCES deliveries ON DELETE CASCADE,
    attempt     int NOT NULL CHECK (attempt >= 1),
    at          timestamptz NOT NULL DEFAULT now(),
    address     text,                             -- the vetted address connected to
    status      int,
    duration_ms int NOT NULL,
    error       text,
    response    text,                             -- first 4 KiB of the answer
    PRIMARY KEY (delivery_id, attempt)
);
