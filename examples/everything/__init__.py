"""The server the official conformance suites are run against."""

from examples.everything.server import Everything

__all__ = ["Everything"]
