"""Tests: one file a module, contract suites, and runs against real servers on loopback."""
