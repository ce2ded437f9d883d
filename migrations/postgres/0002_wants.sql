-- The searches that the replica would poll; NULL as long as it has not said so.
ALTER TABLE replica ADD COLUMN wants BIGINT[];
