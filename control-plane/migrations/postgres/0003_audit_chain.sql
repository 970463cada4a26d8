-- Seals the audit: each row holds the SHA-256 of the seal before it and of one record, so that a record that
-- is changed, taken out or put in between is found. Positions have no gaps.
CREATE TABLE audit_chain (
    position BIGINT PRIMARY KEY,
    audit_id BIGINT NOT NULL UNIQUE,
    -- Time of the record, which tells a record that was pruned from one that was taken out.
    at       BIGINT NOT NULL,
    previous BYTEA NOT NULL CHECK (length(previous) = 32),
    hash     BYTEA NOT NULL CHECK (length(hash) = 32)
);

CREATE TRIGGER audit_chain_is_append_only BEFORE UPDATE OR TRUNCATE ON audit_chain
FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_audit();
