"""What is to be known of a GPU, found out by one command on a bare machine."""
