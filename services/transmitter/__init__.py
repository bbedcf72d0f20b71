"""The transmitter: security events (OpenID Shared Signals Framework 1.0) made of the revocation feed, for receivers."""
