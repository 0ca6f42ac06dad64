"""Metal kernels on the CPU, with every access watched. Start with README.md and emulator.py."""

from .capture import Launch, capture
from .compiler import EmulatorError
from .emulator import Buffer, Emulator, Fault, KernelFault, Report

__all__ = ["Buffer", "Emulator", "EmulatorError", "Fault", "KernelFault", "Launch", "Report", "capture"]
