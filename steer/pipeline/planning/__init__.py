"""Which plan `compute=` stands for: learnt from pilot runs on the user's own pipeline."""
