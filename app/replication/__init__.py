"""From the write-ahead log into Postgres, exactly once (protocol, section 6), with all the SQL."""
