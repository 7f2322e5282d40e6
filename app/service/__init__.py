"""The running journal: opening the log, keeping the checkpoint, and what the API asks for."""
