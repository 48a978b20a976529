"""Who is there: answering and asking on `$SRV`, by the NATS services protocol (ADR-32)."""
