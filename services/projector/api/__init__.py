"""The HTTP API that reads: handlers for admins and auditors."""
