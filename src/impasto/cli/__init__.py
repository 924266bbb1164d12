"""The command line: one thin file per verb group, nothing heavy imported before a verb runs."""
