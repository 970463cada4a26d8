-- The newest bundle document of each foreign trust domain, as it was fetched. A row outlives the document that
-- configures the relation: its sequence is what a rollback is known by.
CREATE TABLE federated_bundles (
    trust_domain TEXT PRIMARY KEY,
    document     BLOB NOT NULL,
    url          TEXT NOT NULL,     -- where it came from
    taken_at     INTEGER NOT NULL,  -- when it came to be the present one
    confirmed_at INTEGER NOT NULL   -- when the endpoint was last heard
) STRICT, WITHOUT ROWID;

-- Foreign trust domains whose bundles a join token's workload gets, as a JSON array.
ALTER TABLE join_tokens ADD COLUMN federates_with TEXT NOT NULL DEFAULT '[]';
