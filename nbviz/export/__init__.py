"""What leaves the notebook: figures."""
