-- What is banned: SPIFFE IDs, and serial numbers of certificates.
CREATE TABLE bans (
    subject TEXT PRIMARY KEY,
    reason  TEXT NOT NULL,
    since   BIGINT NOT NULL
);
