"""Prediction against measurement, as tables, figures and a report."""
