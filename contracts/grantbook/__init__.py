"""What outsiders of Grantbook import: events, subjects, wire format, read-API responses, and the SDK."""
