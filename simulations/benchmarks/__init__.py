"""Speed, as ratios of interleaved variants in one run."""
