"""Tests of the hall: values and formats that both sides speak. Nothing here needs a patch, a clock or a network."""
