"""Launchers: what starts an agent and ends it again."""
