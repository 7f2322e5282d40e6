"""Who takes part: a module each, with the server's start and stop and the load that it gets."""
