"""The path of a message through the NATS servers (ADR-41), and what servers tell of it."""
