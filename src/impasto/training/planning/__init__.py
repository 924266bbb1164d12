"""Plans of a run before it starts: settings that fit, and predicted memory, disk space and time."""
