"""Traces: spans, who decides about them, and where they go."""
