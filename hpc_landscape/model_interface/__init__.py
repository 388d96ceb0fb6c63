"""The names under which loss-landscapes' users know ``hpc_landscape.model``."""
