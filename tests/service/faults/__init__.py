"""Real processes, broken on purpose, and what became of every event: `make faults`."""
