"""The training engine, shared by all methods: the step, the loop, saved states and events."""
