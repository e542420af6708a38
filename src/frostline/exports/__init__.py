"""What a run trained, for tools that know nothing of it."""
