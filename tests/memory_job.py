"""A job that takes memory, in a module that a process of its own imports at once."""


def fill(mebibytes: int) -> int:
    """Fill so many MiB; gives the bytes of one of them."""
    return len(b"1" * mebibytes * 2**20) // mebibytes
