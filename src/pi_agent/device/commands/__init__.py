"""One command a file: ``HELP``, ``add_arguments(parser)``, ``run(args) -> exit code``. Heavy imports stay inside ``run``."""
