"""Films made for the tests: the number of each frame can be read from its pixels, whatever a codec does to them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

BITS, SIDE = 8, 16  # a frame's number in binary, one bright or dark block per bit


def numbered(n: int, *, rows: int = 48, columns: int = 128) -> np.ndarray:
    """uint8[n rows columns 3]: the upper third is a bar of bits, the rest a ramp that moves."""
    frames = np.zeros((n, rows, columns, 3), np.uint8)
    for i in range(n):
        for bit in range(BITS):
            frames[i, :SIDE, bit * SIDE : (bit + 1) * SIDE] = 230 if i >> bit & 1 else 25
        ramp = (np.arange(columns) + 3 * i) % columns
        frames[i, SIDE:] = np.stack([ramp, 127 + 0 * ramp, ramp[::-1]], -1).astype(np.uint8)
    return frames


def number(frame: np.ndarray) -> int:
    """The number of a frame [rows columns 3] that was not cut."""
    blocks = [float(frame[4:12, bit * SIDE + 4 : bit * SIDE + 12].mean()) for bit in range(BITS)]
    return sum(1 << bit for bit, level in enumerate(blocks) if level > 127)


def write_film(
    path: Path, frames: np.ndarray, *, codec: str = "mpeg4", rate: int = 25, gop: int = 12, b_frames: int = 0
) -> Path:
    """Encode frames [n rows columns 3]."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.thread_count = 1
        for i, values in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(values), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, rate)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def damage(path: Path, *, first: float = 0.4, last: float = 0.6) -> Path:
    """Overwrite the middle of a file with other bytes."""
    data = bytearray(path.read_bytes())
    start, stop = int(first * len(data)), int(last * len(data))
    data[start:stop] = np.random.default_rng(0).integers(0, 256, stop - start, dtype=np.uint8).tobytes()
    path.write_bytes(bytes(data))
    return path
