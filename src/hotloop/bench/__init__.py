"""What the `hotloop bench` command runs: problems, peers, timing, roof, report."""
