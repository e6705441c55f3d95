"""What comes in: pictures from files, arrays and tensors, as a model's input."""
