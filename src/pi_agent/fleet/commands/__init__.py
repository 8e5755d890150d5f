"""The commands of ``pi-fleet``: their names and options (``add_commands``), and what they do.

A command is a function from parsed arguments to an exit code. It imports nothing but the standard library and the
client, unless it works on the data folder itself.
"""
