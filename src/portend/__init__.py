"""Portend."""
