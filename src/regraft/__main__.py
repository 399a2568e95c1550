"""`python -m regraft` is `regraft`."""

from regraft.cli.main import main

main()
