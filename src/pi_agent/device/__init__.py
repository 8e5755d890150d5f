"""The agent on the board: a thin resident, and a worker that is started for one refresh and exits."""
