-- As in sqlite/0090_svid_digests.sql, which explains it.

ALTER TABLE svids ADD COLUMN sha256 BYTEA;
