"""An MCP server whose tools are for agents that a user let in, and an admin has not cut off."""
