"""A finished run behind a local web page and an HTTP endpoint."""
