"""What judges the library: against recorded numbers, against the clock, and on known languages."""
