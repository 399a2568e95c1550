"""`python -m regraft` is `regraft`."""

from regraft.cli.app import main

main()
