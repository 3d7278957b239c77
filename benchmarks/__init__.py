"""Speed and size against peers: commands that print a table, never part of the tests."""
