"""Runs on devices, processes and disks: meshes, records, and everything that knows the machine."""
