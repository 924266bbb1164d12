"""What is known before a run begins: the settings that fit, and its memory, disk and time."""
