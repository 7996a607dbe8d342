"""Operations of kernels/ as they are raced, and their peers."""
