-- Doors in and out: webhooks, schedules, callbacks.

-- Callback endpoints, events, signatures

-- Where events of a project go. One that a manifest names (function_id, url) is kept by applies of that function;
-- retired_at: its current manifest names it no more, and only jobs of older versions still tell it. One made over the API
-- has no function_id, and may ask for jobs of some functions only.
CREATE TABLE callback_endpoints (
    id              uuid PRIMARY KEY,
    project_id      bigint NOT NULL REFERENCES projects,
    function_id     uuid REFERENCES functions,
    url             text NOT NULL,
    events          text[] NOT NULL,
    functions       text[],                          -- names; null: whatever the project runs
    description     text NOT NULL DEFAULT '',
    secrets         text[],                          -- project secrets that sign, all of them
    signing_key     bytea,                           -- a key of its own, sealed; neither: the project's key signs
    retired_at      timestamptz,
    failing_since   timestamptz,                     -- of the first failure after the last success
    disabled_at     timestamptz,
    disabled_reason text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    CHECK (secrets IS NULL OR signing_key IS NULL),
    CHECK (function_id IS NULL OR (functions IS NULL AND signing_key IS NULL)),
    CHECK (function_id IS NOT NULL OR retired_at IS NULL),
    CHECK ((disabled_at IS NULL) = (disabled_reason IS NULL))
);
CREATE UNIQUE INDEX callback_endpoints_of_function ON callback_endpoints (function_id, url) WHERE function_id IS NOT NULL;
CREATE INDEX callback_endpoints_by_project ON callback_endpoints (project_id, id DESC);
-- Those of a job: of its function, and (zero) of the project.
CREATE INDEX callback_endpoints_listening
    ON callback_endpoints (project_id, coalesce(function_id, '00000000-0000-0000-0000-000000000000'::uuid));

INSERT INTO callback_endpoints (id, project_id, function_id, url, events)
SELECT gen_random_uuid(), functions.project_id, functions.id, callback ->> 'url',
       ARRAY(SELECT json_array_elements_text(callback -> 'events'))
  FROM functions
  JOIN function_versions v ON v.function_id = functions.id AND v.number = functions.current_number
 CROSS JOIN LATERAL json_array_elements(v.manifest #> '{spec,callbacks}') callback
 WHERE functions.deleted_at IS NULL AND callback ->> 'url' IS NOT NULL;

-- The private ed25519 key of the project, sealed; made when it is first needed.
ALTER TABLE projects ADD COLUMN signing_key bytea;

-- Keys that were replaced and sign along for a while: the project's (endpoint_id null) or an endpoint's own.
CREATE TABLE retired_keys (
    id          uuid PRIMARY KEY,
    project_id  bigint NOT NULL REFERENCES projects,
    endpoint_id uuid REFERENCES callback_endpoints ON DELETE CASCADE,
    algorithm   text NOT NULL CHECK (algorithm IN ('hmac', 'ed25519')),
    sealed      bytea NOT NULL,
    retired_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz NOT NULL,
    CHECK (endpoint_id IS NULL OR algorithm = 'hmac')
);
CREATE INDEX retired_keys_by_project ON retired_keys (project_id);
CREATE INDEX retired_keys_by_endpoint ON retired_keys (endpoint_id) WHERE endpoint_id IS NOT NULL;
CREATE INDEX retired_keys_over ON retired_keys (expires_at);

-- What a version's callbacks want to hear of a job before its end; null: nothing.
ALTER TABLE function_versions ADD COLUMN live_events text[];

-- job_id: whose event it is, a batch or a schedule or an endpoint as well as a job. payload: what is told, where it
-- cannot be made when it is sent. moment tells repeats of one event apart.
ALTER TABLE deliveries
    ADD COLUMN endpoint_id uuid,                     -- null: an address that one job was given
    ADD COLUMN secrets text[],                       -- project secrets that sign, for an address without a row
    ADD COLUMN payload json,
    ADD COLUMN moment timestamptz,
    ADD COLUMN ended_reason text,                    -- why it was exhausted, where no attempt says so
    DROP CONSTRAINT deliveries_job_id_type_url_key;
CREATE UNIQUE INDEX deliveries_once ON deliveries (
    job_id, type, url, coalesce(endpoint_id, '00000000-0000-0000-0000-000000000000'::uuid),
    coalesce(moment, '-infinity'::timestamptz));
CREATE INDEX deliveries_by_endpoint ON deliveries (endpoint_id, id DESC) WHERE endpoint_id IS NOT NULL;
-- Those that go with no job.
CREATE INDEX deliveries_of_no_job ON deliveries (occurred_at)
    WHERE type IN ('schedule.missed', 'callback.test', 'callback.disabled');

-- Inbound webhooks

-- What may be called without a key, each under its function. One of the manifest is kept by applies, another (origin api)
-- survives them. spec: as functions/webhook_spec.py reads it; secrets: the names that it has of them.
CREATE TABLE webhooks (
    id          uuid PRIMARY KEY,
    project_id  bigint NOT NULL REFERENCES projects,
    function_id uuid NOT NULL REFERENCES functions,
    name        text NOT NULL CHECK (name ~ '^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$'),
    origin      text NOT NULL CHECK (origin IN ('manifest', 'api')),
    spec        json NOT NULL,
    secrets     text[] NOT NULL,
    disabled_at timestamptz,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (function_id, name)
);
CREATE INDEX webhooks_by_project ON webhooks (project_id, id DESC);

-- What came in, and what became of it: kept for a time and up to a number for each webhook. A sender's id is remembered
-- in idempotency_keys, under the webhook in the place of a function. No foreign keys: each would lock a shared row.
CREATE TABLE webhook_receipts (
    id         uuid NOT NULL,
    webhook_id uuid NOT NULL,
    project_id bigint NOT NULL,
    verdict    text NOT NULL
        CHECK (verdict IN ('accepted', 'repeated', 'filtered', 'answered', 'refused', 'invalid', 'rejected')),
    job_id     uuid,
    head       json NOT NULL,                 -- headers without secrets, query, size, reason, where a large body lies
    body       bytea,
    at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (webhook_id, id)
);

-- Schedules

-- One cron line of a function: its manifest's, or made over the API (which applies leave alone). next_at: the planned time
-- that comes next, null while there is none (paused, or the line has no more). due_at: when a round looks at it: at next_at,
-- or later when what its job needs did not answer.
CREATE TABLE schedules (
    id          uuid PRIMARY KEY,
    project_id  bigint NOT NULL REFERENCES projects,
    function_id uuid NOT NULL REFERENCES functions,
    name        text NOT NULL CHECK (name ~ '^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$'),
    origin      text NOT NULL CHECK (origin IN ('manifest', 'api')),
    cron        text NOT NULL,
    timezone    text NOT NULL,
    params      json NOT NULL,                -- with look-ups in its texts
    overlap     text NOT NULL CHECK (overlap IN ('skip', 'allow', 'replace')),
    catch_up    text NOT NULL CHECK (catch_up IN ('none', 'one', 'all')),
    jitter      interval NOT NULL CHECK (jitter >= interval '0'),
    paused_at   timestamptz,
    next_at     timestamptz,
    due_at      timestamptz,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (function_id, name),
    CHECK ((next_at IS NULL) = (due_at IS NULL)),
    CHECK (paused_at IS NULL OR next_at IS NULL)
) WITH (fillfactor = 80);
CREATE INDEX schedules_by_project ON schedules (project_id, id DESC);
CREATE INDEX schedules_due ON schedules (due_at) WHERE due_at IS NOT NULL;

-- What came of planned times. "One job for each planned time" rests on the primary key. No foreign key: rows outlive their
-- schedule until their own time is over. Of state missed, one row stands for count planned times up to until_at (null: too
-- many to count).
CREATE TABLE schedule_runs (
    schedule_id uuid NOT NULL,
    planned_at  timestamptz NOT NULL,
    project_id  bigint NOT NULL,
    state       text NOT NULL CHECK (state IN ('submitted', 'skipped', 'missed', 'failed')),
    manual      boolean NOT NULL DEFAULT false,   -- somebody asked for it: planned_at is when
    job_id      uuid,
    ended       boolean NOT NULL DEFAULT false,   -- known to have its outcome; asked when the next one might overlap
    error       json,
    until_at    timestamptz,
    count       int DEFAULT 1 CHECK (count >= 1),
    at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (schedule_id, planned_at),
    CHECK ((state = 'submitted') = (job_id IS NOT NULL)),
    CHECK ((state = 'failed') = (error IS NOT NULL)),
    CHECK ((state = 'missed') = (until_at IS NOT NULL)),
    CHECK (state = 'missed' OR count IS NOT DISTINCT FROM 1)
);
CREATE INDEX schedule_runs_open ON schedule_runs (schedule_id) WHERE job_id IS NOT NULL AND NOT ended;
CREATE INDEX schedule_runs_at ON schedule_runs (at);
