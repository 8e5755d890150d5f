"""Tests of the fleet wing."""
