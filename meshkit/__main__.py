"""`python -m meshkit`: the command line."""

from meshkit.cli import main

main()
