"""One engine for every kind of training: the step, the loop, its state and its events."""
