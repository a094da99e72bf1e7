"""Agents that stay on hosts of their own, and a service over them in which nothing that was accepted is lost."""
