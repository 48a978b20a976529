"""What happens now: rates, who calls whom, and single calls."""
