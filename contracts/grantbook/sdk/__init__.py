"""The part of `grantbook` with I/O: reading the log, the revocation feed, replay."""
