"""The benchmark behind scripts/bench: hostbackup and what a user would pick instead, alternately, on one machine, over a line with a delay."""
