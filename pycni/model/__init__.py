"""Frozen values everything else speaks in. No I/O, no clocks."""
