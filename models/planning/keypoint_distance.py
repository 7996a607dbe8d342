"""Distance of states by where the keypoints of what they show are: where latents are codes, images
tell little of small things, and nothing of what has turned.

Letters: M states, N codes, K keypoints.
"""

from __future__ import annotations

from torch import Tensor

from models.tokenizers.keypoints import Keypoints
from models.world import World


class KeypointDistance:
    """Sum of the distances of keypoints in decoded images, each in halves of a frame's side.

    Keypoints are learned from the same videos without actions or labels.  A small thing has some of
    its own, so that it weighs about as much as a large one.
    """

    per_block = False

    def __init__(self, world: World, keypoints: Keypoints) -> None:
        """ValueError where the world draws no frames of the keypoints' size."""
        if not world.has_decoder or world.image_size != keypoints.image_size:
            height, width = keypoints.image_size
            drawn = "{} x {}".format(*world.image_size) if world.has_decoder else "no"
            raise ValueError(
                f"the keypoints are of frames of {height} x {width}, and this world draws {drawn} "
                f"frames; train keypoints on this world's shards"
            )
        self.world, self.keypoints = world, keypoints

    def start(self, latents: Tensor) -> Tensor:
        """Latents of M states -> (M, K, 2)."""
        found = self.keypoints.encode(self.world.decode_latents(latents))
        return found[:, 0].unflatten(-1, (-1, 2))

    def follow(self, tracked: Tensor, actions: Tensor, latents: Tensor) -> Tensor:
        return self.start(latents)

    def cost(self, tracked: Tensor, goal: Tensor) -> Tensor:
        return (tracked - goal).norm(dim=-1).sum(-1)
