"""A model under the lens: its layers, one traced run, the backward rules."""
