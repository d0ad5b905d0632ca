"""`steer app`: a page that draws with one loaded pipeline, and the process around it."""
