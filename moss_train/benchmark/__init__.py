"""What the parts of a run cost, measured."""
