"""A tokenizer and a dynamics model together, or one model that is both: a world to act in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from models import world_parts
from models.dynamics.dynamics import Dynamics, History, State
from models.frame_residual import FrameResidual, expand_patches, persistent_residual
from models.layers.precision import Precision, autocast
from models.layers.sampling import Sampling
from models.method import CompileFn
from models.tokenizers.codes import CodebookEmbedding
from models.tokenizers.tokenizer import Tokenizer

ENCODED_AT_ONCE = 64  # frames


class World(nn.Module):
    """The only thing that controllers, play, evaluation, export and serving know of a model.

    Everything is batched; actions are in the environment's units where not stated otherwise.
    Where tokenizer and dynamics are one model, trained jointly, it is passed as both.

    Letters: B worlds, T frames, N latents of a state, A action numbers.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        dynamics: Dynamics,
        precision: Precision = "fp32",
        data_actions: ActionSpec | None = None,
    ) -> None:
        """data_actions: of the data, where the model has actions of its own."""
        super().__init__()
        if tokenizer.latents != dynamics.latents:
            raise ValueError(
                f"the tokenizer makes {tokenizer.latents}, but the dynamics model was trained on "
                f"{dynamics.latents}; use the two of one run"
            )
        self.tokenizer, self.dynamics = tokenizer, dynamics
        self.actions = dynamics.actions
        self.data_actions = data_actions or dynamics.actions
        self.latents, self.state_spec = tokenizer.latents, dynamics.state_spec
        self.temporal_context = tokenizer.temporal_context
        self.context = dynamics.context + self.temporal_context - 1
        """Real frames that it can use when it is entered."""
        self.image_size = tokenizer.image_size
        self.has_rewards, self.has_decoder = dynamics.has_rewards, tokenizer.has_decoder
        self.infers_actions = dynamics.infers_actions
        (height, width), (rows, columns) = self.image_size, self.latents.grid
        self._patch = (height // rows, width // columns)
        self.code_vectors = CodebookEmbedding(self.state_spec)
        self.code_vectors.to(self.device).load_codebook(tokenizer)
        self.start_frames = self.context if self.state_spec == self.latents else 1
        """States at consecutive frames that `start_from` reads: 1 where a state is all that is
        remembered."""
        self.precision: Precision = precision
        self.eval()

    @property
    def device(self) -> torch.device:  # where its weights are
        return next(self.parameters()).device

    @property
    def codebooks(self) -> Tensor:
        """(G, K, D / G), the vectors of the tokenizer's codes; empty where there are none."""
        return self.tokenizer.codebooks

    @property
    def num_parameters(self) -> int:
        """Weights of the dynamics model."""
        return sum(p.numel() for p in self.dynamics.parameters())

    # -- entering, acting, looking ----------------------------------------------------------

    def reset(self, frames: Tensor, actions: Tensor) -> State:
        """Start at the last of T >= 1 real frames: (B, T, 3, H, W) uint8, actions (B, T - 1, A)."""
        frames, actions = frames[:, -self.context :], actions.to(self.device)
        actions = actions[:, max(0, actions.shape[1] - frames.shape[1] + 1) :]
        with self._autocast():
            frames = frames.to(self.device)
            encoded = self._encode_context(frames)
            latents = encoded[:, -self.dynamics.context :]
            actions = actions[:, actions.shape[1] - latents.shape[1] + 1 :]
            state = self.dynamics.start(latents, self.actions.normalize(actions))
            past = self.tokenizer.temporal_context - 1
            if past:
                state.history = History(frames[:, -past:], encoded[:, :-1][:, -past:])
            return self._with_frame_residual(_in_float32(state), frames, latents)

    def step(self, state: State, action: Tensor) -> State:
        """Predict what `action`, (B, A), leads to."""
        with self._autocast():
            after = self.dynamics.step(state, self.actions.normalize(action.to(self.device)))
            after = _in_float32(after)
        if state.frame_residual is not None:
            changed = (after.latents != state.latents).unflatten(1, (self.latents.num_patches, -1))
            unchanged = state.frame_residual.unchanged * (1 - changed.float().mean(-1))
            after.frame_residual = replace(state.frame_residual, unchanged=unchanged)
        if state.history is not None:
            after.history = replace(state.history, latents=self._past_latents(state))
        return after

    def rollout(self, state: State, actions: Tensor) -> State:
        """Predict what a sequence of actions, (B, T, A), leads to in the end."""
        return self.imagine(state, self.actions.normalize(actions.to(self.device)))

    def imagine(self, state: State, actions: Tensor) -> State:
        """As `rollout`, of normalized actions on the world's device: what a planner asks thousands
        of times."""
        with self._autocast():
            return _in_float32(self.dynamics.rollout(state, actions))

    def observe(self, state: State, action: Tensor, frames: Tensor) -> State:
        """Move to the real frames, (B, 3, H, W) uint8, that `action`, (B, A), led to."""
        with self._autocast():
            frames = frames.to(self.device)
            clip = frames[:, None]
            if state.history is not None:
                clip = torch.cat([state.history.frames, clip], dim=1)[
                    :, -self.tokenizer.temporal_context :
                ]
            latents = self._encode(clip)[:, -1]
            after = self.dynamics.observe(
                state, self.actions.normalize(action.to(self.device)), latents
            )
            if state.history is not None:
                past = self._past_latents(state)
                after.history = History(clip[:, 1 - self.tokenizer.temporal_context :], past)
            return self._with_frame_residual(_in_float32(after), frames[:, None], latents[:, None])

    def decode(self, state: State) -> Tensor:
        """Draw a state: (B, 3, H, W) uint8; ValueError where the world has no decoder."""
        with self._autocast():
            readout = self.dynamics.readout(state)
            if state.history is not None:
                clip = torch.cat([state.history.latents, readout[:, None]], dim=1)
                return self.tokenizer.decode_clip(clip)[:, -1]
            frames = self._draw(readout)
            kept = state.frame_residual
            if kept is None:
                return frames
            if kept.residual is None:
                drawn = self.tokenizer.decode_clip(kept.latents).float()
                kept.residual = persistent_residual(
                    kept.frames, drawn, self.latents.grid, self._patch
                )
        unchanged = expand_patches(kept.unchanged, self.latents.grid, self._patch)
        return (frames.float() + kept.residual * unchanged).round().clamp(0, 255).byte()

    # -- frames to latents, and back --------------------------------------------------------

    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, N) codes or (B, P, D), as the tokenizer makes them."""
        with self._autocast():
            return self._encode(frames.to(self.device)[:, None])[:, 0]

    def encode_clip(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) uint8 -> (B, T, N) or (B, T, P, D), each frame with those before it."""
        with self._autocast():
            return self._encode(frames.to(self.device))

    def latents_key(self, fingerprint: str) -> str:
        """As the tokenizer says: what its latents are cached by."""
        return self.tokenizer.latents_key(fingerprint)

    def embed(self, frames: Tensor) -> Tensor:
        """The latents of a state at frames of which nothing else is known: what goals and probes
        compare with states.  (B, 3, H, W) uint8 -> (B, N) or (B, P, D)."""
        if self.state_spec == self.latents:
            return self.encode(frames)
        none = self.actions.empty(len(frames), 0).to(self.device)
        return self.reset(frames[:, None], none).latents

    def states(self, frames: Tensor, actions: Tensor) -> Tensor:
        """The latents of its states along episodes, as it observes them: (B, T, 3, H, W) uint8,
        actions (B, T - 1, A) -> (B, T, N) or (B, T, P, D)."""
        past, parts = self.temporal_context - 1, []
        at_once = max(1, ENCODED_AT_ONCE // len(frames))
        with self._autocast():
            for start in range(0, frames.shape[1], at_once):
                given = frames[:, max(0, start - past) : start + at_once]
                encoded = self._encode(given.to(self.device))
                parts.append(encoded[:, min(past, start) :])
            encoded = torch.cat(parts, dim=1)
            actions = self.actions.normalize(actions.to(self.device))
            state = self.dynamics.start(encoded[:, :1], actions[:, :0])
            found = [state.latents]
            for t, action in enumerate(actions.unbind(1), 1):
                state = self.dynamics.observe(state, action, encoded[:, t])
                found.append(state.latents)
            return _float32(torch.stack(found, dim=1))

    def vectors(self, latents: Tensor) -> Tensor:
        """Latents of states, (..., N) codes or (..., P, D), as vectors whose distance says how far
        apart states are: (..., P, D)."""
        with self._autocast():
            found = self.dynamics.state_vectors(latents)
        return self.code_vectors(latents) if found is None else found.float()

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Draw the tokenizer's latents: (B, N) or (B, P, D) -> (B, 3, H, W) uint8."""
        with self._autocast():
            return self._draw(latents)

    def reconstruct(self, frames: Tensor) -> Tensor:
        """Encode and decode frames: (B, 3, H, W) uint8 -> the same."""
        return self.decode_latents(self.encode(frames))

    def actions_of(self, frames: Tensor, actions: Tensor) -> Tensor:
        """The actions of a clip that a rollout takes: those given, or the model's own.

        frames: (B, T, 3, H, W) uint8.  actions: (B, T or T - 1, A).  Returns (B, T - 1, A).
        """
        if not self.infers_actions:
            return actions[:, : frames.shape[1] - 1].to(self.device)
        with self._autocast():
            return self.dynamics.infer_actions(frames.to(self.device))

    def latent_action_vectors(self, frames: Tensor) -> Tensor:
        """Inferred actions before they are quantized: (B, T, 3, H, W) uint8 -> (B, T - 1, K)."""
        with self._autocast():
            return self.dynamics.latent_action_vectors(frames.to(self.device)).float()

    # -- for training in imagination: normalized actions, and the caller's own autocast where the
    # -- world's weights have all their bits ------------------------------------------------

    def start_from(self, latents: Tensor, actions: Tensor) -> State:
        """Latents of states (B, T, N), the normalized actions between them (B, T - 1, A)."""
        with self._at_least_autocast():
            if self.state_spec != self.latents:
                return _in_float32(self.dynamics.from_state(latents[:, -1]))
            return _in_float32(self.dynamics.start(latents, actions))

    def step_from(self, state: State, action: Tensor) -> State:
        """Predict what a normalized action, (B, A), leads to."""
        with self._at_least_autocast():
            return _in_float32(self.dynamics.step(state, action))

    def rollout_from(self, state: State, actions: Tensor) -> State:
        """Predict what normalized actions, (B, T, A), lead to in the end."""
        with self._at_least_autocast():
            return _in_float32(self.dynamics.rollout(state, actions))

    # -- settings ---------------------------------------------------------------------------

    def compile_steps(self, compile_fn: CompileFn) -> None:
        """Compile a step and the decoding of what it leads to, once per input shape.
        Weights are those that are there at the first step of each."""
        self.dynamics.compile_steps(compile_fn)
        self._draw = compile_fn(self.tokenizer, self._draw)

    def set_sampling(self, sampling: Sampling) -> None:
        """Sample codes like this; by default the likeliest are taken, or their expectation where a
        state can hold one."""
        if not hasattr(self.dynamics, "sampling"):
            raise ValueError("this world's predictions are deterministic; sampling has no effect")
        default = Sampling(sampling.temperature, sampling.top_k, sampling.top_p)
        if sampling != default and not hasattr(self.dynamics.config, "sampling_steps"):
            raise ValueError(
                "this world predicts a frame in one way; sampling steps and order have no effect"
            )
        self.dynamics.sampling = sampling  # type: ignore[attr-defined]

    def with_sampling(self, sampling: Sampling) -> World:
        """Return a view with the same weights that samples like this, while other threads sample as
        before; a world that samples nothing is its own view.  Steps and order have no effect where
        a frame is predicted in one way."""
        if not hasattr(self.dynamics, "sampling"):
            return self
        view, dynamics = copy(self), copy(self.dynamics)
        dynamics.sampling = sampling  # type: ignore[attr-defined]
        view._modules = self._modules | {"dynamics": dynamics}  # which copy() has shared
        return view

    @contextmanager
    def sampled(self, sampling: Sampling) -> Iterator[None]:
        """Sample like this inside a `with` block, in all threads; a world that samples nothing
        stays as it is."""
        dynamics: Any = self.dynamics
        before = getattr(dynamics, "sampling", None)
        if not hasattr(dynamics, "sampling"):
            yield
            return
        self.set_sampling(sampling)
        try:
            yield
        finally:
            dynamics.sampling = before

    # -- parts by name: "encoder", "dynamics", "decoder" (models/world_parts.py) ---------------

    def get_module(self, name: str) -> nn.Module:
        """A part as a module of its own, which shares the world's weights."""
        return world_parts.get_part(self, name)

    def set_module(self, name: str, module: nn.Module) -> tuple[str, ...]:
        """Swap a part for another one; print and return what is stale afterwards.

        An encoder takes frames, (B, 3, H, W) uint8, a decoder what `readout` gives, and dynamics is
        a Dynamics.  ValueError for shapes that do not fit, and the world stays as it is.
        """
        stale = world_parts.set_part(self, name, module)
        print(f"world: its {name} is another one; stale now: {'; '.join(stale)}")
        return stale

    def freeze_module(self, name: str) -> int:
        """Take the gradient from a part's weights, which a world's methods never change; return how
        many tensors that are."""
        return world_parts.require_grad(self, name, False)

    def unfreeze_module(self, name: str) -> int:
        """Give a part's weights a gradient, to train them on; return how many tensors that are."""
        return world_parts.require_grad(self, name, True)

    # -- pieces -----------------------------------------------------------------------------

    def _with_frame_residual(self, state: State, frames: Tensor, latents: Tensor) -> State:
        """Keep the real frames, (B, T, 3, H, W), where patches have codes that show whether they
        change: latents (B, T, N)."""
        framewise = self.tokenizer.temporal_context == 1 and self.state_spec == self.latents
        if self.latents.kind == "continuous" or not framewise or not self.has_decoder:
            return state
        unchanged = torch.ones(len(frames), self.latents.num_patches, device=self.device)
        kept = FrameResidual(frames.to(self.device), latents, unchanged)
        return replace(state, frame_residual=kept)

    def _past_latents(self, state: State) -> Tensor:
        assert state.history is not None
        past = [state.history.latents, self.dynamics.readout(state)[:, None]]
        return torch.cat(past, dim=1)[:, 1 - self.tokenizer.temporal_context :]

    def _encode(self, clip: Tensor) -> Tensor:
        """Whatever reads latents outside of autocast has weights of 32 bits: clip
        (B, T, 3, H, W) uint8 -> (B, T, N) codes or (B, T, P, D) float32."""
        return _float32(self.tokenizer.encode_clip(clip))

    def _encode_context(self, clip: Tensor) -> Tensor:
        """The same of a start's frames; zeros at those that the dynamics does not read."""
        apart, length = self.dynamics.context_interval, clip.shape[1]
        if apart == 1 or self.temporal_context > 1:
            return self._encode(clip)
        read = self._encode(clip[:, (length - 1) % apart :: apart])
        encoded = read.new_zeros(len(clip), length, *read.shape[2:])
        encoded[:, (length - 1) % apart :: apart] = read
        return encoded

    def _draw(self, latents: Tensor) -> Tensor:
        return self.tokenizer.decode_clip(latents[:, None])[:, 0]

    def _at_least_autocast(self) -> AbstractContextManager[object]:
        """Weights of 16 bits need autocast, whatever the precision of the training is."""
        return nullcontext() if self.precision == "fp32" else self._autocast()

    def _autocast(self) -> AbstractContextManager[object]:
        return autocast(self.device, self.precision)


def _in_float32(state: State) -> State:
    """Hand out a state whose latents are as controllers read them, outside of autocast."""
    return replace(state, latents=_float32(state.latents))


def _float32(latents: Tensor) -> Tensor:
    return latents.float() if latents.is_floating_point() else latents
