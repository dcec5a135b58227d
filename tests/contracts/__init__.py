"""Contract suites: every implementation of one of our protocols passes the same tests."""
