"""Tests of the authority: what survives attackers, crashes, and its own fleet."""
