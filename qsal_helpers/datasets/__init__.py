"""Small real data sets."""
