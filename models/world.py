"""A tokenizer and a dynamics model together: a world that can be entered, acted in, looked at."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Literal, cast

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from models.dynamics.dynamics import Dynamics, FrameResidual, State
from models.layers.compile_fn import CompileFn
from models.layers.sampling import Sampling
from models.tokenizers.codes import CodebookEmbedding
from models.tokenizers.tokenizer import Tokenizer

Precision = Literal["bf16", "fp16", "fp32"]


SHRINKAGE = 0.3  # weight of the whole frame in what is measured of one patch


class World(nn.Module):
    """Everything is batched; actions are in the environment's own units.

    Letters: B worlds, T frames, A numbers of an action.
    """

    def __init__(
        self, tokenizer: Tokenizer, dynamics: Dynamics, precision: Precision = "fp32"
    ) -> None:
        super().__init__()
        if tokenizer.latents != dynamics.latents:
            raise ValueError(
                f"the tokenizer makes {tokenizer.latents}, but the dynamics model was trained on "
                f"{dynamics.latents}; use the two of one run"
            )
        self.tokenizer, self.dynamics = tokenizer, dynamics
        self.actions, self.latents = dynamics.actions, dynamics.latents
        self.context = dynamics.context
        self.image_size = tokenizer.image_size
        sides = zip(self.image_size, self.latents.grid, strict=True)
        self.patch_size: tuple[int, ...] = tuple(pixels // cells for pixels, cells in sides)
        self.vectors = CodebookEmbedding(self.latents)
        """Latents, (..., N) codes or (..., P, D), as vectors (..., P, D) that can be compared."""
        self.vectors.to(self.device).load_codebook(tokenizer)
        self.precision: Precision = precision
        self.eval()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def reset(self, frames: Tensor, actions: Tensor) -> State:
        """Enter at the last of T >= 1 real frames: (B, T, 3, H, W) uint8, (B, T - 1, A)."""
        frames, actions = frames[:, -self.context :], actions.to(self.device)
        actions = actions[:, max(0, actions.shape[1] - frames.shape[1] + 1) :]
        with self._autocast():
            encoded = self.tokenizer.encode(frames.to(self.device).flatten(0, 1))
            latents = rearrange(encoded, "(B T) ... -> B T ...", B=len(frames))
            state = self.dynamics.start(latents, self.actions.normalize(actions))
            return self._with_frame_residual(state, frames, latents)

    def step(self, state: State, action: Tensor) -> State:
        """Imagine what `action`, (B, A), leads to."""
        with self._autocast():
            after = self.dynamics.step(state, self.actions.normalize(action.to(self.device)))
        if state.frame_residual is not None:
            changed = (after.latents != state.latents).unflatten(1, (self.latents.num_patches, -1))
            unchanged = state.frame_residual.unchanged * (1 - changed.float().mean(-1))
            after.frame_residual = replace(state.frame_residual, unchanged=unchanged)
        return after

    def rollout(self, state: State, actions: Tensor) -> State:
        """Imagine what actions, (B, T, A), lead to in the end."""
        return self.imagine(state, self.actions.normalize(actions.to(self.device)))

    def imagine(self, state: State, actions: Tensor) -> State:
        """As `rollout`, of actions in [-1, 1], or codes, on the world's device: what a search asks
        thousands of times."""
        with self._autocast():
            return self.dynamics.rollout(state, actions)

    def observe(self, state: State, action: Tensor, frames: Tensor) -> State:
        """Take in the real frames, (B, 3, H, W) uint8, that `action`, (B, A), has led to."""
        with self._autocast():
            latents = self.tokenizer.encode(frames.to(self.device))
            after = self.dynamics.observe(
                state, self.actions.normalize(action.to(self.device)), latents
            )
            return self._with_frame_residual(after, frames[:, None], latents[:, None])

    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, N) codes or (B, P, D)."""
        with self._autocast():
            return self.tokenizer.encode(frames.to(self.device))

    def decode(self, state: State) -> Tensor:
        """Look: (B, 3, H, W) uint8."""
        with self._autocast():
            frames = self._decode_latents(state.latents)
            if state.frame_residual is None:
                return frames
            frame_residual = state.frame_residual
            if frame_residual.residual is None:
                frame_residual.residual = self._persistent_residual(
                    frame_residual.frames, frame_residual.latents
                )
        corrected = frames.float() + frame_residual.residual * self._expand_patches(
            frame_residual.unchanged
        )
        return corrected.round().clamp(0, 255).byte()

    def compile_steps(self, compile_fn: CompileFn) -> None:
        """Compile a step and the look at where it leads, anew for every shape they come in.
        Weights are those that are there at the first step of each."""
        self.dynamics.compile_steps(compile_fn)
        self._decode_latents = compile_fn(cast(nn.Module, self.tokenizer), self._decode_latents)

    def set_sampling(self, sampling: Sampling) -> None:
        """Imagine with codes that are drawn like this; a new world takes the likeliest."""
        if not hasattr(self.dynamics, "sampling"):
            raise ValueError("this world foretells one future; sampling has no effect on it")
        self.dynamics.sampling = sampling  # type: ignore[attr-defined]

    def _with_frame_residual(self, state: State, frames: Tensor, latents: Tensor) -> State:
        """Keep the real frames, (B, T, 3, H, W), where patches have codes that tell if they stay:
        latents (B, T, N)."""
        if self.latents.kind == "continuous":
            return state
        unchanged = torch.ones(len(frames), self.latents.num_patches, device=self.device)
        return replace(
            state, frame_residual=FrameResidual(frames.to(self.device), latents, unchanged)
        )

    def _decode_latents(self, latents: Tensor) -> Tensor:
        return self.tokenizer.decode(latents)

    def _persistent_residual(self, frames: Tensor, latents: Tensor) -> Tensor:
        """What the tokenizer loses of the last of T real frames and is missing from the next, too.

        Noise is lost as edges are, but it does not stay. Of what was lost of each frame, the share
        that was missing from the one after it is found patch by patch, by least squares drawn
        towards that of the whole frame.  (B, T, 3, H, W), (B, T, N) -> (B, 3, H, W).
        """
        reconstruction = self.tokenizer.decode(latents.flatten(0, 1)).view_as(frames).float()
        residual = frames - reconstruction
        if frames.shape[1] == 1:
            return residual[:, 0]
        before, after = residual[:, :-1], frames[:, 1:] - reconstruction[:, :-1]
        covariance, variance = self._patch_sums(before * after), self._patch_sums(before.square())
        covariance, variance = (
            x + SHRINKAGE * x.mean(1, keepdim=True) for x in (covariance, variance)
        )
        gain = (covariance / variance.clamp(min=1e-6)).clamp(0, 1)
        return residual[:, -1] * self._expand_patches(gain)

    def _patch_sums(self, pixels: Tensor) -> Tensor:
        """(B, T, 3, H, W) -> (B, P), sums."""
        (h, _), (p, q) = self.latents.grid, self.patch_size
        return reduce(pixels, "B T c (h p) (w q) -> B (h w)", "sum", h=h, p=p, q=q)

    def _expand_patches(self, patches: Tensor) -> Tensor:
        """(B, P) -> (B, 1, H, W), each patch over its pixels."""
        (h, _), (p, q) = self.latents.grid, self.patch_size
        return repeat(patches, "B (h w) -> B 1 (h p) (w q)", h=h, p=p, q=q)

    def _autocast(self) -> AbstractContextManager[object]:
        return autocast(self.device, self.precision)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Multiply in `precision` inside a `with`."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")
