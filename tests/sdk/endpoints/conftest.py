"""Fixtures of the endpoint tests."""

from __future__ import annotations

from tests.ray_fixture import local_ray

__all__ = ["local_ray"]
