"""Tests of the device wing: real files, real sockets, real processes, and a scripted server on loopback."""
