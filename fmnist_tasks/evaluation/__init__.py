"""Metrics of a model, the gates that evaluate them, and the figures and reports that show them."""
