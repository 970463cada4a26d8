-- The same tables as in sqlite/0001_initial.sql, which explains them. Times are seconds since 1970-01-01 UTC.

CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE authorities (
    id          BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    role        TEXT NOT NULL CHECK (role IN ('root', 'signing')),
    state       TEXT NOT NULL CHECK (state IN ('prepared', 'active', 'old')),
    certificate BYTEA NOT NULL UNIQUE,
    private_key BYTEA,
    not_after   BIGINT NOT NULL,
    created_at  BIGINT NOT NULL
);

CREATE UNIQUE INDEX one_active_authority ON authorities (role) WHERE state = 'active';

CREATE TABLE registrations (
    id               TEXT PRIMARY KEY,
    spiffe_id        TEXT NOT NULL,
    attestor         TEXT NOT NULL,
    svid_ttl_seconds BIGINT NOT NULL CHECK (svid_ttl_seconds > 0),
    services         TEXT NOT NULL,
    created_at       BIGINT NOT NULL
);

CREATE TABLE join_tokens (
    sha256           BYTEA PRIMARY KEY CHECK (octet_length(sha256) = 32),
    spiffe_id        TEXT NOT NULL,
    svid_ttl_seconds BIGINT NOT NULL CHECK (svid_ttl_seconds > 0),
    services         TEXT NOT NULL,
    created_at       BIGINT NOT NULL,
    expires_at       BIGINT NOT NULL,
    used_at          BIGINT
);

CREATE TABLE svids (
    serial       TEXT PRIMARY KEY,
    registration TEXT NOT NULL REFERENCES registrations (id) ON DELETE CASCADE,
    not_after    BIGINT NOT NULL
);

CREATE INDEX svids_by_registration ON svids (registration, not_after);
CREATE INDEX svids_by_end ON svids (not_after);

CREATE TABLE workloads (
    spiffe_id   TEXT NOT NULL,
    instance_id TEXT NOT NULL,
    record      BYTEA NOT NULL,
    PRIMARY KEY (spiffe_id, instance_id)
);

CREATE TABLE audit (
    id           BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    at           BIGINT NOT NULL,
    event        TEXT NOT NULL,
    outcome      TEXT NOT NULL,
    detail       TEXT,
    spiffe_id    TEXT,
    registration TEXT,
    serial       TEXT,
    not_after    BIGINT,
    caller       TEXT NOT NULL,
    csr_sha256   TEXT
);

CREATE INDEX audit_by_time ON audit (at);

CREATE FUNCTION refuse_to_change_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit is append-only';
END;
$$;

CREATE TRIGGER audit_is_append_only BEFORE UPDATE OR TRUNCATE ON audit
FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_audit();
