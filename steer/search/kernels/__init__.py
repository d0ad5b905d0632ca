"""What moves particles where every step draws fresh noise."""
