"""The registry over HTTP: parse, transact, render."""
