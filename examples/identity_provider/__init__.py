"""A small but honest OAuth authorization server. What it knows of clients and grants is Grantbook's: see `register`."""
