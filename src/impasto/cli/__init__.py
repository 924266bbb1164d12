"""The command line: one thin file per command group; heavy imports wait until a command runs."""
