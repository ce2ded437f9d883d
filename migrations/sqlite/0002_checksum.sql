-- Of a row's last position, heads and bodies; NULL in rows that an earlier version has written.
ALTER TABLE journal ADD COLUMN checksum INTEGER;
