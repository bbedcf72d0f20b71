"""The registry: the only writer of the log. It knows no Postgres."""
