"""What all ranks do together: agree on what is computed, and compute it."""
