"""What a command does. Joins places to the vault; silent (reports through an Observer)."""
