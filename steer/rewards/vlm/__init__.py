"""Rewards by vision-language models: answers to questions, scores in text, and heads on Qwen-VL."""
