"""One HTML page that shows a field in any browser."""
