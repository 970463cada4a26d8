-- The slots of certificate authorities: when each came into its state, which trust bundle first had it, how
-- long what it signed is good.

DROP INDEX one_active_authority;
ALTER TABLE authorities RENAME TO authorities_before_slots;

CREATE TABLE authorities (
    id            BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    role          TEXT NOT NULL CHECK (role IN ('root', 'signing')),
    state         TEXT NOT NULL CHECK (state IN ('prepared', 'active', 'old', 'revoked')),
    certificate   BYTEA NOT NULL UNIQUE,
    -- Certificates between this one and its root, each in DER, one after the other.
    intermediates BYTEA,
    -- PKCS#8 in DER; absent when the key is kept elsewhere or is of no further use.
    private_key   BYTEA,
    not_after     BIGINT NOT NULL,
    created_at    BIGINT NOT NULL,
    -- When it came into its state.
    changed_at    BIGINT NOT NULL,
    -- Sequence of the trust bundle that first had it; of a root alone.
    introduced    BIGINT NOT NULL DEFAULT 0,
    tainted       BIGINT NOT NULL DEFAULT 0 CHECK (tainted IN (0, 1)),
    -- The latest end of all SVIDs that were signed below it.
    signed_until  BIGINT NOT NULL DEFAULT 0
);

INSERT INTO authorities (role, state, certificate, private_key, not_after, created_at, changed_at)
SELECT role, state, certificate, CASE WHEN state = 'old' THEN NULL ELSE private_key END, not_after, created_at,
       created_at
FROM authorities_before_slots ORDER BY id;

DROP TABLE authorities_before_slots;

CREATE UNIQUE INDEX one_active_authority ON authorities (role) WHERE state = 'active';

-- Counts changes of the slots: who changes them names the count that it saw, and one of several wins.
INSERT INTO settings (name, value) VALUES ('authority_version', '0');

-- While a root is prepared: how many live proxies of each process of the control plane have not got the
-- bundle that has it.
CREATE TABLE authority_laggards (
    process         TEXT PRIMARY KEY,
    bundle_sequence BIGINT NOT NULL,
    waiting         BIGINT NOT NULL,
    laggards        TEXT NOT NULL,  -- JSON array of the first ones' SPIFFE IDs and names
    reported_at     BIGINT NOT NULL
);
