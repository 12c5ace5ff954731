"""Deals with the machine: devices and meshes, processes, signals, and files of records."""
