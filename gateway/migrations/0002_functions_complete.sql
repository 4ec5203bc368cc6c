-- Functions complete: what a manifest could say and the first release refused.

-- Queue: gates, slots, head starts, times to live, pauses

-- A limit that a function's jobs pass one after another: level 1 jobs of one key, 2 of the function, 3 starts in a time.
-- One row for each value of the key, made by the first job that has it. An update takes the row's lock: who counts slots
-- and gives some away holds it.
CREATE TABLE gates (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id  bigint NOT NULL,
    function_id uuid NOT NULL,
    level       smallint NOT NULL CHECK (level BETWEEN 1 AND 3),
    key         bytea NOT NULL CHECK (length(key) IN (0, 32)),   -- SHA-256 of the key's value; empty: no key
    lim         int NOT NULL CHECK (lim >= 1),
    per         interval CHECK (per > interval '0'),
    used_at     timestamptz NOT NULL DEFAULT now(),              -- by a submit, to the day
    UNIQUE (function_id, level, key),
    CHECK ((level = 3) = (per IS NOT NULL))
) WITH (fillfactor = 50);
CREATE INDEX gates_used ON gates (used_at);

-- What is taken of a gate's limit: by a job that was let in and has not ended (until is null), or, of a rate, by a start.
CREATE TABLE slots (
    gate_id bigint NOT NULL,
    job_id  uuid NOT NULL,
    attempt int NOT NULL CHECK (attempt >= 0),
    until   timestamptz,
    PRIMARY KEY (gate_id, job_id, attempt)
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX slots_of_job ON slots (job_id) WHERE until IS NULL;
CREATE INDEX slots_until ON slots (until) WHERE until IS NOT NULL;

-- Where a project's sequence had got to: what a head start is measured by.
CREATE TABLE flow_marks (
    project_id bigint NOT NULL,
    at         timestamptz NOT NULL,
    f          float8 NOT NULL,
    PRIMARY KEY (project_id, at)
);
CREATE INDEX flow_marks_at ON flow_marks (at);

-- gates: those that the job passes, in the order of their levels.
ALTER TABLE ready_jobs
    ADD COLUMN ttl_at timestamptz, ADD COLUMN cancel_at timestamptz, ADD COLUMN gates bigint[],
    ADD COLUMN head_start interval CHECK (head_start > interval '0');
ALTER TABLE leases
    ADD COLUMN cancel_at timestamptz, ADD COLUMN gates bigint[],
    ADD COLUMN head_start interval CHECK (head_start > interval '0');
-- due_at belongs to the stages that wait for a time; gate_id to `gated`, function_id to `paused`; head, the order in
-- which they go on, and queued_at to both of those.
ALTER TABLE waiting_jobs
    ADD COLUMN ttl_at timestamptz, ADD COLUMN cancel_at timestamptz, ADD COLUMN gates bigint[],
    ADD COLUMN head_start interval CHECK (head_start > interval '0'),
    ADD COLUMN gate_id bigint, ADD COLUMN function_id uuid, ADD COLUMN head timestamptz, ADD COLUMN queued_at timestamptz,
    ALTER COLUMN due_at DROP NOT NULL,
    DROP CONSTRAINT waiting_jobs_stage_check,
    ADD CONSTRAINT waiting_jobs_stage_check CHECK (stage IN ('delayed', 'retry', 'gated', 'paused')),
    DROP CONSTRAINT waiting_jobs_check1,
    ADD CONSTRAINT waiting_jobs_delayed_check CHECK (stage <> 'delayed' OR attempt = 0),
    ADD CONSTRAINT waiting_jobs_due_check CHECK ((stage IN ('delayed', 'retry')) = (due_at IS NOT NULL)),
    ADD CONSTRAINT waiting_jobs_gate_check CHECK ((stage = 'gated') = (gate_id IS NOT NULL)),
    ADD CONSTRAINT waiting_jobs_function_check CHECK ((stage = 'paused') = (function_id IS NOT NULL)),
    ADD CONSTRAINT waiting_jobs_head_check CHECK ((stage IN ('gated', 'paused')) = (head IS NOT NULL)),
    ADD CONSTRAINT waiting_jobs_queued_check CHECK ((stage IN ('gated', 'paused')) = (queued_at IS NOT NULL)),
    ADD CONSTRAINT waiting_jobs_gates_check CHECK (gate_id IS NULL OR gate_id = ANY (gates));
CREATE INDEX waiting_jobs_gated ON waiting_jobs (gate_id, head, job_id) WHERE stage = 'gated';
CREATE INDEX waiting_jobs_paused ON waiting_jobs (function_id, head, job_id) WHERE stage = 'paused';
CREATE INDEX waiting_jobs_queued ON waiting_jobs (project_id, job_id) WHERE stage IN ('gated', 'paused');
CREATE INDEX waiting_jobs_scheduled ON waiting_jobs (project_id, job_id) WHERE stage IN ('delayed', 'retry');
CREATE INDEX ready_jobs_over ON ready_jobs (least(ttl_at, cancel_at)) WHERE ttl_at IS NOT NULL OR cancel_at IS NOT NULL;
CREATE INDEX waiting_jobs_over ON waiting_jobs (least(ttl_at, cancel_at))
    WHERE ttl_at IS NOT NULL OR cancel_at IS NOT NULL;

ALTER TABLE functions ADD COLUMN paused_at timestamptz;
CREATE INDEX functions_paused ON functions (id) WHERE paused_at IS NOT NULL;

-- Secrets and retries by cause
CREATE TABLE secrets (
    id         uuid PRIMARY KEY,
    project_id bigint NOT NULL REFERENCES projects,
    name       text NOT NULL CHECK (name ~ '^[A-Za-z_][A-Za-z0-9_]{0,254}$'),
    sealed     bytea NOT NULL,                -- with RGRID_SECRET_KEY
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (project_id, name)
);
CREATE INDEX secrets_by_project ON secrets (project_id, id DESC);

-- Names of the secrets that the version needs; null: none.
ALTER TABLE function_versions ADD COLUMN secrets text[];

-- Files: uploads, links, spilled params and results
-- What streams through the gateway is hashed on its way: its digests are known when it is complete.
ALTER TABLE artifacts
    ALTER COLUMN sha256 DROP NOT NULL,
    ALTER COLUMN md5 DROP NOT NULL,
    ADD COLUMN key_id text,                                -- the API key that announced it; null: a job's output, or it came through the gateway
    ADD COLUMN upload_id text,                             -- of its multipart upload at the store
    ADD COLUMN shared boolean NOT NULL DEFAULT false,      -- a key that may write uploaded it: others need not do it again
    ADD COLUMN params_of uuid,                             -- it holds this job's params, and lives as long as the job
    ADD CONSTRAINT artifacts_complete_sha256 CHECK (state = 'pending' OR sha256 IS NOT NULL);
CREATE INDEX artifacts_uploaded ON artifacts (project_id, sha256) WHERE key_id IS NOT NULL;
CREATE INDEX artifacts_params_of ON artifacts (params_of) WHERE params_of IS NOT NULL;

-- Batches and one-off jobs

-- A batch's jobs are written with it, in one transaction, and none comes later. looked_to: every job of it with a larger id
-- has its outcome, so that the look for the last one goes over each job once.
CREATE TABLE batches (
    id           uuid PRIMARY KEY,
    project_id   bigint NOT NULL,
    function_id  uuid NOT NULL,
    version_id   uuid NOT NULL,
    total        int NOT NULL CHECK (total >= 1),
    callback_url text,
    key_id       text,
    looked_to    uuid NOT NULL DEFAULT 'ffffffff-ffff-ffff-ffff-ffffffffffff',
    counts       json,                            -- status → jobs, once all have their outcome
    created_at   timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz,
    CHECK ((counts IS NULL) = (completed_at IS NULL))
);
CREATE INDEX batches_by_project ON batches (project_id, id DESC);
CREATE INDEX batches_open ON batches (id) WHERE completed_at IS NULL;
CREATE INDEX jobs_by_batch ON jobs (batch_id, id) WHERE batch_id IS NOT NULL;

-- A job retried in bulk is not retried again: which ones have been is asked for each.
CREATE INDEX jobs_retried ON jobs (retried_from) WHERE retried_from IS NOT NULL;

-- Jobs without a function share a version for each spec, which is kept while it is used.
ALTER TABLE function_versions ADD COLUMN used_at timestamptz NOT NULL DEFAULT now();
CREATE UNIQUE INDEX function_versions_one_off ON function_versions (project_id, manifest_hash) WHERE function_id IS NULL;
CREATE INDEX function_versions_unused ON function_versions (used_at) WHERE function_id IS NULL;
CREATE INDEX jobs_one_off ON jobs (version_id) WHERE function_id IS NULL;

-- Chaining and retention

-- A job that another one's outcome causes: written with the outcome, with the id that the job will have.
CREATE TABLE chains (
    job_id     uuid NOT NULL,                 -- whose outcome it was
    position   int NOT NULL,                  -- of the callback in its version's manifest
    project_id bigint NOT NULL,
    next_id    uuid NOT NULL UNIQUE,
    function   text NOT NULL,
    state      text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'submitted', 'failed')),
    error      json,
    due_at     timestamptz NOT NULL DEFAULT now(),
    ended_at   timestamptz,
    PRIMARY KEY (job_id, position),
    CHECK ((state = 'pending') = (ended_at IS NULL)),
    CHECK ((state = 'failed') = (error IS NOT NULL))
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX chains_due ON chains (due_at) WHERE state = 'pending';

-- When what a finished job has left goes. Made of outcomes, in the order of their ends, by a round of its own.
CREATE TABLE expiries (
    job_id       uuid PRIMARY KEY,
    due_at       timestamptz NOT NULL,        -- of what goes next
    logs_at      timestamptz,                 -- null: gone
    artifacts_at timestamptz,
    jobs_at      timestamptz NOT NULL
);
CREATE INDEX expiries_due ON expiries (due_at);
CREATE INDEX outcomes_in_order ON outcomes (finished_at, job_id);

-- Up to where outcomes have their expiries; and what the bucket of this database is marked with. One row.
CREATE TABLE expiry_cursor (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    instance    uuid NOT NULL DEFAULT gen_random_uuid(),
    finished_at timestamptz NOT NULL DEFAULT '-infinity',
    job_id      uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000'
);
INSERT INTO expiry_cursor DEFAULT VALUES;

-- expiring: nobody is given it any more, its object goes; expired: gone, the row says what it was; missing: the store
-- has lost it.
ALTER TABLE artifacts
    DROP CONSTRAINT artifacts_state_check,
    ADD CONSTRAINT artifacts_state_check CHECK (state IN ('pending', 'complete', 'expiring', 'expired', 'missing'));
CREATE INDEX artifacts_expiring ON artifacts (id) WHERE state = 'expiring';
CREATE INDEX artifacts_kept_uploads ON artifacts (created_at, id) WHERE state = 'complete' AND job_id IS NULL;
CREATE INDEX artifacts_gone_uploads ON artifacts (id) WHERE state IN ('expired', 'missing') AND job_id IS NULL;
CREATE INDEX artifacts_in_store ON artifacts (object_key COLLATE "C") WHERE state = 'complete';

-- Files that jobs read: kept while such a job is not finished.
CREATE TABLE artifact_uses (
    artifact_id uuid NOT NULL,
    job_id      uuid NOT NULL,
    at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (artifact_id, job_id)
);
CREATE INDEX artifact_uses_by_job ON artifact_uses (job_id);

-- Files that manifests name: saved images, constant inputs. Kept while the version may run.
CREATE TABLE version_artifacts (
    artifact_id uuid NOT NULL,
    version_id  uuid NOT NULL REFERENCES function_versions ON DELETE CASCADE,
    PRIMARY KEY (artifact_id, version_id)
);
CREATE INDEX version_artifacts_by_version ON version_artifacts (version_id);
