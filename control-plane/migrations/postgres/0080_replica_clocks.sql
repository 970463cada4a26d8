-- How far each replica's clock is ahead of the database's, in milliseconds, as in sqlite/0080_replica_clocks.sql.

ALTER TABLE replicas ADD COLUMN clock_ahead_ms BIGINT;
