"""Everything on one machine, from wheels, for development and trials."""
