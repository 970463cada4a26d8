-- Bundle documents of foreign trust domains; sqlite/0070_federation.sql explains them.
CREATE TABLE federated_bundles (
    trust_domain TEXT PRIMARY KEY,
    document     BYTEA NOT NULL,
    url          TEXT NOT NULL,
    taken_at     BIGINT NOT NULL,
    confirmed_at BIGINT NOT NULL
);

ALTER TABLE join_tokens ADD COLUMN federates_with TEXT NOT NULL DEFAULT '[]';
