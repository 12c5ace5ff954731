"""The default configuration, and its validation across sections."""
