"""The admin pages: rendered here, shown by a browser. Talks to the two APIs over HTTP, and holds no data."""
