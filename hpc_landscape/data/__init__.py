"""The batches of a data set."""
