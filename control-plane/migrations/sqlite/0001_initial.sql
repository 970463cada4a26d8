-- Times are seconds since 1970-01-01 UTC.

CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

-- Certificate authorities: roots, and the signing intermediates made from them. Each has a slot state, so
-- that a rotation that was under way goes on after a restart.
CREATE TABLE authorities (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    role        TEXT NOT NULL CHECK (role IN ('root', 'signing')),
    state       TEXT NOT NULL CHECK (state IN ('prepared', 'active', 'old')),
    certificate BLOB NOT NULL UNIQUE,
    -- PKCS#8 in DER; absent when the key is kept elsewhere.
    private_key BLOB,
    not_after   INTEGER NOT NULL,
    created_at  INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX one_active_authority ON authorities (role) WHERE state = 'active';

-- What an attestation allowed: renewals and streams go by it.
CREATE TABLE registrations (
    id               TEXT PRIMARY KEY,
    spiffe_id        TEXT NOT NULL,
    attestor         TEXT NOT NULL,
    svid_ttl_seconds INTEGER NOT NULL CHECK (svid_ttl_seconds > 0),
    services         TEXT NOT NULL,  -- JSON array of "name.namespace"
    created_at       INTEGER NOT NULL
) STRICT;

-- Only the SHA-256 of a token is kept.
CREATE TABLE join_tokens (
    sha256           BLOB PRIMARY KEY CHECK (length(sha256) = 32),
    spiffe_id        TEXT NOT NULL,
    svid_ttl_seconds INTEGER NOT NULL CHECK (svid_ttl_seconds > 0),
    services         TEXT NOT NULL,
    created_at       INTEGER NOT NULL,
    expires_at       INTEGER NOT NULL,
    used_at          INTEGER
) STRICT, WITHOUT ROWID;

-- Which registration an issued certificate came from, as long as the certificate can be used.
CREATE TABLE svids (
    serial       TEXT PRIMARY KEY,
    registration TEXT NOT NULL REFERENCES registrations (id) ON DELETE CASCADE,
    not_after    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX svids_by_registration ON svids (registration, not_after);
CREATE INDEX svids_by_end ON svids (not_after);

-- Workloads as they last registered, to be served after a restart until they are back.
CREATE TABLE workloads (
    spiffe_id   TEXT NOT NULL,
    instance_id TEXT NOT NULL,
    record      BLOB NOT NULL,  -- sidewind.v1.Workload
    PRIMARY KEY (spiffe_id, instance_id)
) STRICT, WITHOUT ROWID;

-- One row for each issuance and refusal. Rows are never changed.
CREATE TABLE audit (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    at           INTEGER NOT NULL,
    event        TEXT NOT NULL,  -- attest, renew, token-create
    outcome      TEXT NOT NULL,  -- granted, or the reason of the refusal
    detail       TEXT,
    spiffe_id    TEXT,
    registration TEXT,
    serial       TEXT,
    not_after    INTEGER,
    caller       TEXT NOT NULL,  -- IP address, or uid of the Unix socket's peer
    csr_sha256   TEXT
) STRICT;

CREATE INDEX audit_by_time ON audit (at);

CREATE TRIGGER audit_is_append_only BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit is append-only');
END;
