"""Follows the log and keeps the read models in Postgres; serves what is read from them."""
