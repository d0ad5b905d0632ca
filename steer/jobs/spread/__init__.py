"""Units of work to results, in order: in this process, or on the workers of a Ray cluster."""
