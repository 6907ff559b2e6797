"""Where weights are, what is recomputed or compiled. Nothing of ours is imported here."""
