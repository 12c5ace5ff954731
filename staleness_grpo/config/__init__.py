"""Defines the default configuration, and checks configs before they are run."""
