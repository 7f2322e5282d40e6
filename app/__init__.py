"""The journal: entries acknowledged after fdatasync, replicated exactly once into PostgreSQL."""
