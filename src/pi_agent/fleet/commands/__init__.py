"""What each command of ``pi-fleet`` does. ``pi_agent.fleet.cli`` has their names and options.

A command is a function from parsed arguments to an exit code. It imports nothing but the standard library and the
client, unless it works on the data folder itself.
"""
