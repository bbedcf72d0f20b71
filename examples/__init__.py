"""A reference deployment: an identity provider and an MCP server that use Grantbook. Run it with `make demo`."""
