-- What a registration allows beyond its identity, and what it came from, as one JSON object: it is read and
-- written whole, and no query looks inside.
ALTER TABLE registrations ADD COLUMN terms TEXT NOT NULL DEFAULT '{}';

-- Facts that stay what they were when first seen: the unique id behind a role's name.
CREATE TABLE pinned_facts (
    subject TEXT PRIMARY KEY,
    value   TEXT NOT NULL,
    seen_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
