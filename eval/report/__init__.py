"""One static page of results."""
