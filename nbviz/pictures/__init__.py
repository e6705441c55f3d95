"""From pictures, as files, arrays and tensors, to a model's input."""
