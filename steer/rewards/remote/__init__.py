"""Rewards that compute elsewhere: models behind OpenAI's protocol, what `steer serve` serves."""
