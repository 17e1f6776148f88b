"""The network.  The only folder that imports flax."""
