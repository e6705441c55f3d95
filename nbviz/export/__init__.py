"""What leaves the notebook: figures, and logs for TensorBoard."""
