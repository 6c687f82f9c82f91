"""Workers that a real Slurm starts, in a lab beside the checkout."""
