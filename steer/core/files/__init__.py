"""Files: atomic writes, images that carry their reproduction data, run folders."""
