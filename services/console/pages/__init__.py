"""The pages: handlers that read or act over the API, and hand what they got to a template."""
