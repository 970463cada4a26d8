-- Seals the audit: each row holds the SHA-256 of the seal before it and of one record, so that a record that
-- is changed, taken out or put in between is found. Positions have no gaps.
CREATE TABLE audit_chain (
    position INTEGER PRIMARY KEY,
    audit_id INTEGER NOT NULL UNIQUE,
    -- Time of the record, which tells a record that was pruned from one that was taken out.
    at       INTEGER NOT NULL,
    previous BLOB NOT NULL CHECK (length(previous) = 32),
    hash     BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT;

CREATE TRIGGER audit_chain_is_append_only BEFORE UPDATE ON audit_chain
BEGIN
    SELECT RAISE(ABORT, 'the audit is append-only');
END;
