"""Metrics: what there are, and the views that are drawn of them."""
