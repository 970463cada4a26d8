-- As in sqlite/0081_jwt_key_taint.sql, which explains it.

ALTER TABLE jwt_keys ADD COLUMN tainted BIGINT NOT NULL DEFAULT 0;
