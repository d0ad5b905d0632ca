"""Preference scorers: any open_clip model, fine-tuned on human or other choices."""
