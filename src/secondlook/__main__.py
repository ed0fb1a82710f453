"""``python -m secondlook`` is the command ``secondlook``."""

from secondlook.cli import main

main()
