"""Whole datasets: statistics of what a model does on all pictures, gathered in parallel and kept on disk."""
