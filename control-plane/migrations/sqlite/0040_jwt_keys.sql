-- Keys that sign JWT-SVIDs. Each has a slot state as authorities have, so that a rotation that was under way
-- goes on after a restart.
CREATE TABLE jwt_keys (
    key_id      TEXT PRIMARY KEY,
    state       TEXT NOT NULL CHECK (state IN ('prepared', 'active', 'old')),
    -- PKCS#8 in DER; gone once the key is old, since what is not there cannot leak.
    private_key BLOB,
    public_key  BLOB NOT NULL,  -- SubjectPublicKeyInfo in DER
    not_after   INTEGER NOT NULL,
    created_at  INTEGER NOT NULL,
    CHECK ((state = 'old') = (private_key IS NULL))
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX one_jwt_key_in_each_slot ON jwt_keys (state) WHERE state <> 'old';
