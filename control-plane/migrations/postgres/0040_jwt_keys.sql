-- Keys that sign JWT-SVIDs; sqlite/0040_jwt_keys.sql explains them.
CREATE TABLE jwt_keys (
    key_id      TEXT PRIMARY KEY,
    state       TEXT NOT NULL CHECK (state IN ('prepared', 'active', 'old')),
    private_key BYTEA,
    public_key  BYTEA NOT NULL,
    not_after   BIGINT NOT NULL,
    created_at  BIGINT NOT NULL,
    CHECK ((state = 'old') = (private_key IS NULL))
);

CREATE UNIQUE INDEX one_jwt_key_in_each_slot ON jwt_keys (state) WHERE state <> 'old';
