"""Whether a text is written in the image, read by OCR: quotes of prompts, likeness, the reward."""
