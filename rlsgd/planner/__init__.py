"""`rlsgd memory`: what training takes of memory and network, by arithmetic alone."""
