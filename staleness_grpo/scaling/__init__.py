"""Laws, intervals and early signs from measurements of runs."""
