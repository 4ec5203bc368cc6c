-- Limits of functions: those of the current version hold for all jobs, whichever version they have.

-- When the current version became another one, until every job in the queue stands at its limits; null: they all do.
ALTER TABLE functions ADD COLUMN limits_changed_at timestamptz;
CREATE INDEX functions_limits_changed ON functions (limits_changed_at) WHERE limits_changed_at IS NOT NULL;

-- Jobs of a key that hold no slot now and come back to its gate.
CREATE INDEX waiting_jobs_aside ON waiting_jobs ((gates[1])) WHERE stage IN ('retry', 'paused') AND gates IS NOT NULL;
