"""What happens beside the loop: saving, logging, showing progress; each a hook of the engine."""
