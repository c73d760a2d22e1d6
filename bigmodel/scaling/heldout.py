"""Reports of studies that hold something out: the largest budget of IsoFLOP curves, and decays from one trunk.

Legend: N parameters, D tokens, C training FLOPs, L loss.
"""

from __future__ import annotations
