"""Timings of single operators on this machine, so that a model's latency can be foretold without the machine.

Needs numpy and the engine, and nothing else: the graphs are written here, byte by byte. The result is the
*operator table* that ``devices/README.md`` describes; the packager adds up a model's operators with it.
"""
