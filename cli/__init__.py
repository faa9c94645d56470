"""The command line: `uplion`."""
