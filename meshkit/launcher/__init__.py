"""`meshkit run`: the processes of a machine's services, from their targets to their draining."""
