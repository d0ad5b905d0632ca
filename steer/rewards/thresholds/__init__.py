"""What is good enough: thresholds fitted on scores, and cuts with a guarantee."""
