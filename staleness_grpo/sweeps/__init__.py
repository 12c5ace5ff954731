"""Runs whole trainings as compiled programs, spread over worker processes."""
