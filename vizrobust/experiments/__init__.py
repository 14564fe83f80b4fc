"""Experiments that train in order to measure, beside the study."""
