-- What replicas tell each other, as in sqlite/0002_replicas.sql, which explains it.

CREATE TABLE notices (
    topic  TEXT PRIMARY KEY,
    number BIGINT NOT NULL
);

CREATE TABLE replicas (
    id         TEXT PRIMARY KEY,
    beat       BIGINT NOT NULL,
    version    TEXT NOT NULL,
    started_at BIGINT NOT NULL
);

ALTER TABLE workloads ADD COLUMN replica TEXT NOT NULL DEFAULT '';
ALTER TABLE workloads ADD COLUMN change BIGINT NOT NULL DEFAULT 0;
ALTER TABLE workloads ADD COLUMN gone_at BIGINT;

CREATE INDEX workloads_by_change ON workloads (change);
CREATE INDEX workloads_by_replica ON workloads (replica);

CREATE TABLE services (
    name     TEXT PRIMARY KEY,
    change   BIGINT NOT NULL,
    noted_at BIGINT NOT NULL
);

CREATE INDEX services_by_change ON services (change);

CREATE INDEX registrations_by_spiffe_id ON registrations (spiffe_id, created_at);

ALTER TABLE audit ADD COLUMN record TEXT;
CREATE UNIQUE INDEX audit_by_record ON audit (record);
