"""CLIP encoders for rewards: loading, preprocessing, the fused tower."""
