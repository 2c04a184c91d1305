"""Speed of bertorch and its peers on the same work in one process, as ratios; each file is a command."""
