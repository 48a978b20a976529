"""Durable endpoints: messages that are kept by JetStream until they have been handled."""
