"""What methods are made of: the context, lanes, kernels, weighted populations."""
