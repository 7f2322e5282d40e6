"""HTTP: the only place that knows of requests, statuses and content types."""
