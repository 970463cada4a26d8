-- How far each replica's clock is ahead of the database's, in milliseconds; SQLite has that of its process. Replicas hear
-- of one another's clocks by it, however late they read it.
ALTER TABLE replicas ADD COLUMN clock_ahead_ms INTEGER;
