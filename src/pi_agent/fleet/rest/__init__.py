"""The REST interface, one file for each kind of thing. ``pi_agent.fleet.api`` puts them together."""

PROGRAMS = ("/api/", "/sd/")  # where programs ask: every refusal there is problem details
