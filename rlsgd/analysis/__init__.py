"""`rlsgd analyze`: what tuning did to the weights of a checkpoint, read one tensor at a time."""
