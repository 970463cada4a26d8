-- What replicas tell each other. With SQLite there is one, and the tables serve its restarts alone.

-- How often each topic has changed. Who changes a topic raises its number in the same transaction, so that
-- numbers are committed in their order.
CREATE TABLE notices (
    topic  TEXT PRIMARY KEY,
    number INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One row for each running process. A beat that stands still means that it is gone; no clocks are compared.
CREATE TABLE replicas (
    id         TEXT PRIMARY KEY,
    beat       INTEGER NOT NULL,
    version    TEXT NOT NULL,
    started_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The replica that the workload's stream is at, the notice it came with, and when it left. One that left
-- stays for minutes, so that every replica hears of it.
ALTER TABLE workloads ADD COLUMN replica TEXT NOT NULL DEFAULT '';
ALTER TABLE workloads ADD COLUMN change INTEGER NOT NULL DEFAULT 0;
ALTER TABLE workloads ADD COLUMN gone_at INTEGER;

CREATE INDEX workloads_by_change ON workloads (change);
CREATE INDEX workloads_by_replica ON workloads (replica);

-- Services that registrations have named lately, so that every replica knows that they are in the mesh
-- before they have a workload.
CREATE TABLE services (
    name     TEXT PRIMARY KEY,
    change   INTEGER NOT NULL,
    noted_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX services_by_change ON services (change);

-- Certificates may come to a replica that did not issue them.
CREATE INDEX registrations_by_spiffe_id ON registrations (spiffe_id, created_at);

-- Names a record, so that one whose commit was not confirmed can be written again.
ALTER TABLE audit ADD COLUMN record TEXT;
CREATE UNIQUE INDEX audit_by_record ON audit (record);
