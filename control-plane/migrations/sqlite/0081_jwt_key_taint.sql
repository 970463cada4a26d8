-- 1: an old key that is not to be relied on any more. Its end is that of the last token that it may have signed.
ALTER TABLE jwt_keys ADD COLUMN tainted INTEGER NOT NULL DEFAULT 0;
