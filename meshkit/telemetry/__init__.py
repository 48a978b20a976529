"""What is measured, and how it is shown: metrics, traces, logs, the path of messages through the servers."""
