"""Programs and config files that tests run in processes of their own."""
