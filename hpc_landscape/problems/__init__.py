"""What is measured: a model, data, a loss."""
