"""Moved to pipeline/cuda_graph.py; to be deleted once nothing imports it."""

from pipeline.cuda_graph import CudaGraphed, CudaGraphedWorld

__all__ = ["CudaGraphed", "CudaGraphedWorld"]
