"""What a registration says of itself, judged. Pure: no I/O, no clock; the registry and the projector both ask here."""
