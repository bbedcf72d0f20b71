"""The HTTP API of the transmitter: discovery, management of streams, delivery by poll."""
