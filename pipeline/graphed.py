"""Moved to pipeline/cuda_graph.py; to be deleted once nothing imports it."""

from pipeline.cuda_graph import WARMUP_CALLS, StaticCudaGraph

__all__ = ["WARMUP_CALLS", "StaticCudaGraph"]
