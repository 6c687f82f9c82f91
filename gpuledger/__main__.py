"""Lets `python -m gpuledger` do what `gpuledger` does."""

from __future__ import annotations

from gpuledger.cli import main

if __name__ == "__main__":
    main()
