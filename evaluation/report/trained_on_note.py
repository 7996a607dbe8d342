"""What a report says of episodes that are held out here, and were trained on."""

from __future__ import annotations


def trained_on_note(trained_on: int | None, held_out: int) -> str:
    """Say how many held-out episodes were trained on; empty where none was.

    trained_on: None where that is not known.
    """
    if trained_on == 0:
        return ""
    if trained_on is None:
        return (
            "unknown whether any held-out episode was trained on: a checkpoint does not remember "
            "its recordings; episodes that are made anew are unseen (preprocess.py with another "
            "--seed and --run, then --shards)"
        )
    return (
        f"warning: {trained_on} of the {held_out} held-out episodes were trained on, so the "
        f"figures are not of unseen episodes"
    )
