"""Agents, one per tier, that run a plan over ZeroMQ."""
