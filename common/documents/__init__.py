"""Documents for people, made from a job's evidence and nothing else."""
